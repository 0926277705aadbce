"""Pages for people: templates with everything escaped, and a policy under which only our own files load."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from quart import request

from service.http.errors import UnknownPath
from service.http.schemas import response

if TYPE_CHECKING:
    from quart import Response

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MEDIA = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
FRESH_SECONDS = 300  # a new release shows its pages within minutes

TEMPLATES = Environment(
    loader=FileSystemLoader(HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(template: str, *, policy: str = POLICY, **values: object) -> Response:
    """Return a page; `policy` is its Content-Security-Policy."""
    text = TEMPLATES.get_template(template).render(values)
    return response(text, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy, "Vary": "Accept"})


def wants_html() -> bool:
    """Whether the client would rather have a page than JSON; a program that takes anything gets JSON."""
    return request.accept_mimetypes.best_match(["application/json", "text/html"]) == "text/html"


class StaticFiles:
    """The pages' own files, held in memory: no path of a request ever reaches the file system."""

    def __init__(self) -> None:
        files = (path for path in (HERE / "static").iterdir() if path.suffix in MEDIA)
        self._files = {path.name: (path.read_text(encoding="utf-8"), MEDIA[path.suffix]) for path in files}

    async def static_file(self, name: str) -> Response:
        """Return a file; raises UnknownPath."""
        if name not in self._files:
            raise UnknownPath
        text, media = self._files[name]
        return response(text, media, headers={"Cache-Control": f"public, max-age={FRESH_SECONDS}"})
