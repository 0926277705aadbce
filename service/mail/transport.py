"""Opens the way to the mail server that MAIL_URL names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from actors.ports import Transport
from service.mail.message import Messages
from service.mail.server import HttpProvider, ehlo_name, parse

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from uuid import UUID

    from service.settings import Settings


class MailTransport(Transport, Protocol):
    """A transport that can also be tried without an owed mail."""

    async def check(self) -> None:
        """Connect, and log in where mails do, without sending anything; raises ServerUnavailable."""
        ...

    async def send_test(self, recipient: str, test_id: UUID) -> None:
        """Send a test mail; raises as `send` does."""
        ...


def open_transport(settings: Settings, url: str) -> AbstractAsyncContextManager[MailTransport]:
    """Return the transport for MAIL_URL, to be entered; raises SettingsError before anything is opened."""
    server, messages = parse(url), Messages(settings)
    if isinstance(server, HttpProvider):
        from service.mail.http_api import HttpTransport  # noqa: PLC0415 - each way pays for its own client only

        return HttpTransport.open(server, messages)
    from service.mail.smtp import SmtpTransport  # noqa: PLC0415 - as above

    return SmtpTransport.open(server, messages, ehlo_name(settings, messages.sender.domain))


def check(settings: Settings) -> None:
    """Raise SettingsError, with one line, when MAIL_URL, MAIL_FROM or the templates could not make a mail."""
    Messages(settings)
    if settings.mail_url is not None:
        parse(settings.mail_url.get_secret_value())
