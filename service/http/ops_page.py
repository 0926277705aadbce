"""The dashboard for operators: the page, its live feed, and the way in and out.

None of it is in the description: it is for a browser, and what it shows programs read from the metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from quart import request
from werkzeug.http import parse_options_header

from service.http.dev_mail import has_catcher
from service.http.errors import UnsupportedMedia
from service.http.json_gate import body
from service.http.ops_session import OpsSession
from service.http.ops_snapshot import SnapshotView
from service.http.ops_stream import OpsStream
from service.http.rendering import page, wants_html
from service.http.schemas import response

if TYPE_CHECKING:
    from quart import Response

    from actors.metrics_ports import MetricsReader
    from service.http.health import Health
    from service.http.ops_access import OpsAccess
    from service.settings import Settings

FORM = "application/x-www-form-urlencoded"
SEE_OTHER = 303
OWN_ORIGIN = {"Referrer-Policy": "same-origin"}  # without it browsers send `Origin: null` with our own forms


class OpsPages:
    """The handlers, around the metrics of all workers and the notes of the health check."""

    def __init__(
        self, settings: Settings, reader: MetricsReader, health: Health, access: OpsAccess, version: str
    ) -> None:
        self._reader = reader
        self._health = health
        self._access = access
        self._version = version
        self._catcher = has_catcher(settings) and settings.ops_token is None
        self._session = OpsSession(settings, access)
        self._stream = OpsStream(self._snapshot)

    async def dashboard(self) -> Response:
        """Show the page; a browser without a session is sent to sign in."""
        if wants_html() and self._session.is_wanting():
            return _see("/ops/session")
        await self._session.check()
        return self._page("ops.html", signed_in=self._session.needed, catcher=self._catcher)

    async def events(self) -> Response:
        """Answer with the live feed."""
        await self._session.check()
        return self._stream.answer()

    async def sign_in_page(self) -> Response:
        """Ask for the token, where there is one."""
        if not self._session.needed:
            return _see("/ops")
        return self._page("ops_session.html")

    async def sign_in(self) -> Response:
        """Exchange the token for a session; raises OpsTokenMissing, or RateLimited for a client that guesses."""
        self._session.check_origin()
        if not self._session.needed:
            return _see("/ops")
        await self._access.check_token(_token(await _form()))
        answer = _see("/ops")
        answer.headers["Set-Cookie"] = self._session.cookie(self._session.value())
        return answer

    async def sign_out(self) -> Response:
        """Take the session back from the browser."""
        self._session.check_origin()
        answer = _see("/ops/session")
        answer.headers["Set-Cookie"] = self._session.cookie("", lifetime=0)
        return answer

    async def _snapshot(self) -> str:
        metrics = await self._reader.read()
        return SnapshotView.of(metrics, self._health.notes(), self._version).model_dump_json()

    def _page(self, template: str, *, signed_in: bool = False, catcher: bool = False) -> Response:
        answer = page(template, version=self._version, signed_in=signed_in, catcher=catcher)
        answer.headers.update(OWN_ORIGIN)
        return answer


async def _form() -> dict[str, list[str]]:
    """Return the fields of the form that was sent; raises UnsupportedMedia for anything else."""
    media, _ = parse_options_header(request.headers.get("Content-Type", ""))
    if media.lower() != FORM:
        raise UnsupportedMedia(f"Send the token as {FORM}.")
    return parse_qs((await body()).decode(errors="replace"))


def _token(form: dict[str, list[str]]) -> str:
    given = form.get("token", [])
    return given[0].strip() if len(given) == 1 else ""


def _see(path: str) -> Response:
    return response("", "text/plain; charset=utf-8", SEE_OTHER, {"Location": path})
