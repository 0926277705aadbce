"""Chooses the way out for mails, and checks everything about it that can be checked before the first mail."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.mailer.envelope import Envelopes, Sender
from service.mailer.mail_url import HttpProvider, parse
from service.mailer.wording import Wording

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from actors.mail_ports import Postman
    from service.settings import Settings


def open_postman(settings: Settings, mail_url: str) -> AbstractAsyncContextManager[Postman]:
    """Return the postman for MAIL_URL, to be entered; raises BadSettings, before anything is opened."""
    envelopes = _envelopes(settings)
    way = parse(mail_url)
    if isinstance(way, HttpProvider):
        from service.mailer.http_api import HttpPostman  # noqa: PLC0415 - each way pays for its own client only

        return HttpPostman.open(way, envelopes)
    from service.mailer.smtp import SmtpPostman  # noqa: PLC0415 - as above

    return SmtpPostman.open(way, envelopes)


def check(settings: Settings) -> None:
    """Raise BadSettings, with one line, when MAIL_URL, MAIL_FROM or the templates could not make a mail.

    Cheap enough for a master to ask before it starts anything.
    """
    _envelopes(settings)
    if settings.mail_url is not None:
        parse(settings.mail_url.get_secret_value())


def _envelopes(settings: Settings) -> Envelopes:
    sender = Sender.parse(settings.mail_from)
    return Envelopes(sender, Wording(settings, sender.name or None))
