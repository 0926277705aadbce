"""The caught mails of a development machine, for people and for scripts; no route of it exists anywhere else."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING

import anyio
from pydantic import Field

from service.embedded.caught_mails import list_mails, read_mail
from service.http.describing import Operation, describes
from service.http.errors import UnknownPath
from service.http.rendering import page, wants_html
from service.http.schemas import View

if TYPE_CHECKING:
    from quart import Response

    from service.embedded.caught_mails import CaughtMail
    from service.settings import Settings

NEWEST = 100
POLICY = (  # a mail's own styles are inline and stay within its sandboxed frame; it loads nothing and runs nothing
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src data:; frame-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class CaughtMailView(View):
    """One caught mail."""

    id: str
    to: str = Field(repr=False)
    subject: str = Field(repr=False)
    date: datetime
    text: str = Field(repr=False)

    @classmethod
    def of(cls, mail: CaughtMail) -> CaughtMailView:
        """Show a mail without its HTML."""
        return cls(id=mail.id, to=mail.to, subject=mail.subject, date=mail.date, text=mail.text)


class CaughtMailsView(View):
    """The newest mails, newest first."""

    mails: list[CaughtMailView]


def has_catcher(settings: Settings) -> bool:
    """Whether mails go to the built-in catcher."""
    return settings.env == "development" and settings.mail_url is None


class DevMail:
    """The handlers, around the folder where the catcher keeps its mails."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.data_dir / "mails"
        self._threads = anyio.CapacityLimiter(1)  # reading a folder is nothing for the loop, and nothing in a hurry

    @describes(Operation("List the caught mails.", {200: CaughtMailsView}, access="ops"))
    async def caught_mails(self) -> Response:
        """Answer with the newest mails."""
        mails = await anyio.to_thread.run_sync(list_mails, self._folder, NEWEST, limiter=self._threads)
        if wants_html():
            return page("mails.html", mails=mails)
        return CaughtMailsView(mails=[CaughtMailView.of(mail) for mail in mails]).response(headers={"Vary": "Accept"})

    @describes(Operation("Show a caught mail.", {200: CaughtMailView}, access="ops", problems=(UnknownPath,)))
    async def caught_mail(self, mail_id: str) -> Response:
        """Answer with one mail; raises UnknownPath."""
        mail = await anyio.to_thread.run_sync(read_mail, self._folder, mail_id, limiter=self._threads)
        if mail is None:
            raise UnknownPath
        if wants_html():
            return page("mail.html", policy=POLICY, mail=mail)
        return CaughtMailView.of(mail).response(headers={"Vary": "Accept"})
