"""Pages for people: sign-up, documentation, problems, and the mails that the development catcher has kept."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import Field
from pydantic_core import to_json
from quart import request

from service.http.openapi import describes
from service.http.problems import UnknownPath, by_slug
from service.http.schemas import View, response

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quart import Response

    from service.settings import Settings

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
MAIL_POLICY = (  # a mail's own styles are inline and stay within its sandboxed frame; it loads nothing and runs nothing
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src data:; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
MEDIA = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
FRESH_SECONDS = 300  # a new release shows its pages within minutes
NEWEST = 100  # caught mails in one answer
JSON, HTML = "application/json", "text/html"
LINKS = {  # for programs: where to go on
    "registration": "/api/v1/users/register",
    "health": "/api/v1/health",
    "description": "/openapi.json",
    "documentation": "/docs",
}


def wants_html() -> bool:
    """Whether the client would rather have a page than JSON; a program that takes anything gets JSON."""
    return request.accept_mimetypes.best_match([JSON, HTML]) == HTML


class CardView(View):
    """What this is, for programs."""

    name: str = "vestibule"
    version: str
    description: str = "Create an account with e-mail and password, receive a code by e-mail, activate with it."
    code_digits: int
    links: dict[str, str]


class Pages:
    """The handlers; `document` gives the description once the routes are known.

    Static files are held in memory: no path of a request ever reaches the file system.
    """

    def __init__(self, settings: Settings, version: str, document: Callable[[], Mapping[str, object]]) -> None:
        links = {name: f"{settings.root}{path}" for name, path in LINKS.items()}
        self._card = CardView(version=version, code_digits=settings.code_digits, links=links)
        self._document = document
        self._problems = by_slug()
        self._files = {
            path.name: (path.read_text(encoding="utf-8"), MEDIA[path.suffix])
            for path in (HERE / "static").iterdir()
            if path.suffix in MEDIA
        }
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.globals["root"] = settings.root

    def page(self, template: str, *, policy: str = POLICY, **values: object) -> Response:
        """Return a page; `policy` is its Content-Security-Policy."""
        text = self._templates.get_template(template).render(values)
        return response(text, "text/html; charset=utf-8", headers={"Content-Security-Policy": policy, "Vary": "Accept"})

    async def static_file(self, name: str) -> Response:
        """Return a file; raises UnknownPath."""
        if name not in self._files:
            raise UnknownPath
        text, media = self._files[name]
        return response(text, media, headers={"Cache-Control": f"public, max-age={FRESH_SECONDS}"})

    @describes({200: CardView})
    async def home(self) -> Response:
        """Show browsers the sign-up page, and programs what this is."""
        if wants_html():
            return self.page("signup.html", digits=self._card.code_digits, version=self._card.version)
        return self._card.response(headers={"Vary": "Accept"})

    @describes({200: HTML}, problems=(UnknownPath,))
    async def problem(self, slug: str) -> Response:
        """Explain a type of problem."""
        if slug not in self._problems:
            raise UnknownPath
        return self.page("problem.html", problems=self._problems[slug])

    async def ops(self) -> Response:
        """Show the operators' page, which reads the figures as any program of theirs: nothing of them is in it."""
        return self.page("ops.html", version=self._card.version)

    @describes({200: JSON})
    async def openapi(self) -> Response:
        """Describe every call (OpenAPI 3.1)."""
        return response(to_json(self._document()).decode(), JSON)

    @describes({200: HTML})
    async def docs(self) -> Response:
        """Show the description to people."""
        return self.page("docs.html", document=self._document())


class CaughtMailView(View):
    """One caught mail, without its HTML."""

    id: str
    to: str = Field(repr=False)
    subject: str = Field(repr=False)
    date: datetime
    text: str = Field(repr=False)


class CaughtMailsView(View):
    """The newest mails, newest first."""

    mails: list[CaughtMailView]


class CaughtMails(NamedTuple):
    """How the mails of the built-in catcher are read, which blocks; their attributes are those of CaughtMailView."""

    newest: Callable[[int], Sequence[object]]
    read: Callable[[str], object | None]


class DevMail:
    """The handlers, around the mails that the catcher keeps."""

    def __init__(self, mails: CaughtMails, pages: Pages) -> None:
        self._mails = mails
        self._pages = pages
        self._threads = anyio.CapacityLimiter(1)  # reading a folder is nothing for the loop, and nothing in a hurry

    @describes({200: CaughtMailsView}, access="ops")
    async def caught_mails(self) -> Response:
        """List the newest caught mails."""
        mails = await anyio.to_thread.run_sync(self._mails.newest, NEWEST, limiter=self._threads)
        if wants_html():
            return self._pages.page("mails.html", mails=mails)
        return CaughtMailsView(mails=[CaughtMailView.of(mail) for mail in mails]).response(headers={"Vary": "Accept"})

    @describes({200: CaughtMailView}, access="ops", problems=(UnknownPath,))
    async def caught_mail(self, mail_id: str) -> Response:
        """Show a caught mail."""
        mail = await anyio.to_thread.run_sync(self._mails.read, mail_id, limiter=self._threads)
        if mail is None:
            raise UnknownPath
        if wants_html():
            return self._pages.page("mail.html", policy=MAIL_POLICY, mail=mail)
        return CaughtMailView.of(mail).response(headers={"Vary": "Accept"})
