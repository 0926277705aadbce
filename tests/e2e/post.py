"""Reads the mails that an instance has sent, where they have really arrived."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email import message_from_bytes
from email.policy import SMTPUTF8
from typing import TYPE_CHECKING, Protocol

from service.embedded.mail_catcher import ENVELOPE_TO, SUFFIX, names
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from email.message import EmailMessage
    from pathlib import Path

    from tests.e2e.ledger import Ledger
    from tests.servers.smtp import SmtpServer

ARRIVAL_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class ReceivedMail:
    """One mail, to whom the envelope says."""

    to: str
    message: EmailMessage = field(repr=False)

    @property
    def text(self) -> str:
        """The text part."""
        part = self.message.get_body(("plain",))
        assert part is not None
        return str(part.get_content()).replace("\r\n", "\n")

    @property
    def code(self) -> str:
        """The code: the one line of the text that is all digits."""
        lines = re.findall(r"^[0-9]{4,10}$", self.text, re.MULTILINE)
        assert len(lines) == 1, "the code does not stand alone on one line"
        return str(lines[0])


class Mailbox(Protocol):
    """All mails that were sent so far, oldest first."""

    def mails(self) -> list[ReceivedMail]:
        """Return them."""
        ...


class CaughtMails:
    """The mails of the built-in catcher, from its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, ReceivedMail] = {}

    def mails(self) -> list[ReceivedMail]:
        """Return them; each file is read once."""
        for name in names(self._folder):
            if name not in self._read:
                raw = (self._folder / (name + SUFFIX)).read_bytes()
                message = message_from_bytes(raw, policy=SMTPUTF8)
                self._read[name] = ReceivedMail(str(message[ENVELOPE_TO]), message)
        return list(self._read.values())


class ServerMails:
    """The mails that a server of the tests has taken."""

    def __init__(self, server: SmtpServer) -> None:
        self._server = server

    def mails(self) -> list[ReceivedMail]:
        """Return them."""
        return [ReceivedMail(mail.recipients[0], mail.message) for mail in list(self._server.mails)]


class Post:
    """Waits for mails; every code that it sees becomes a secret of the instance."""

    def __init__(self, mailbox: Mailbox, ledger: Ledger) -> None:
        self._mailbox = mailbox
        self._ledger = ledger

    def to(self, address: str) -> list[ReceivedMail]:
        """Return the mails to an address, oldest first."""
        found = [mail for mail in self._mailbox.mails() if mail.to.lower() == address.lower()]
        self._ledger.codes.update(mail.code for mail in found)
        return found

    def wait(self, address: str, number: int = 1) -> ReceivedMail:
        """Return the so-manieth mail to an address once it has arrived."""
        wait_for(lambda: len(self.to(address)) >= number, f"mail {number} has arrived", ARRIVAL_SECONDS)
        return self.to(address)[number - 1]
