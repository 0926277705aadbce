"""Puts a claimed mail into its envelope: addresses that servers take, and headers that nobody can inject into."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime, parseaddr
from functools import lru_cache
from typing import TYPE_CHECKING

import idna

from actors.domain.mail import Rejected
from service.settings import BadSettings

if TYPE_CHECKING:
    from actors.domain.mail import ClaimedMail
    from service.mailer.wording import Wording, Written

LINE = 78  # characters of a line that travels as it is (RFC 5322, 2.1.1)
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
QUOTED = re.compile(r'"([\x20-\x21\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*"')
DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
FOLD = "\r\n "
SAMPLE = "9472063185"  # stands for a code of up to ten digits
HEADERS = {
    "Auto-Submitted": "auto-generated",  # RFC 3834: nobody answers it by machine
    "X-Auto-Response-Suppress": "All",  # the same for Exchange, which does not know the RFC
}


class NoAddress(ValueError):
    """The text is no address that a mail server takes without SMTPUTF8; the error does not repeat it."""


def ascii_address(text: str) -> str:
    """Return the address with its domain in ASCII (IDNA 2008); raises NoAddress."""
    local, at, domain = text.rpartition("@")
    if not at or not (ATOMS.fullmatch(local) or QUOTED.fullmatch(local)):
        raise NoAddress
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise NoAddress from None
    if not DOMAIN.fullmatch(domain):
        raise NoAddress
    return f"{local}@{domain}"


@dataclass(frozen=True, slots=True)
class Sender:
    """Who mails come from: the name that people see, if there is one, and the address."""

    name: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read MAIL_FROM, `address` or `Name <address>`; raises BadSettings."""
        name, address = parseaddr(text)
        whole = text.strip() == address or text.rstrip().endswith(f"<{address}>")
        try:
            return cls(name, ascii_address(address if whole and text.isprintable() else ""))
        except NoAddress:
            raise BadSettings("VESTIBULE_MAIL_FROM: must be an address, or Name <address>") from None

    @property
    def domain(self) -> str:
        """The address' part after the `@`."""
        return self.address.rpartition("@")[2]

    def __str__(self) -> str:
        return str(_address(self.name, self.address))


@dataclass(frozen=True, slots=True)
class Envelope:
    """A mail ready to leave; `message_id` is the same for every attempt that carries the same code."""

    sender: Sender
    recipient: str = field(repr=False)
    message_id: str
    written: Written = field(repr=False)


class Envelopes:
    """Fills envelopes; one per process."""

    def __init__(self, sender: Sender, wording: Wording) -> None:
        self._sender = sender
        self._wording = wording

    def fill(self, mail: ClaimedMail, code: str | None) -> Envelope:
        """Return the mail in its envelope; raises Rejected for a recipient that no mail server takes."""
        try:
            recipient = ascii_address(mail.recipient)
        except NoAddress:
            raise Rejected("the recipient is no address for SMTP") from None
        return Envelope(self._sender, recipient, self._message_id(mail), self._wording.of(mail, code))

    def _message_id(self, mail: ClaimedMail) -> str:
        """Name the mail by what it carries: servers that drop a repeat must not drop a fresh code."""
        digest = hashlib.sha256(f"{mail.id}/{mail.code_id}".encode()).hexdigest()
        return f"<{digest[:32]}@{self._sender.domain}>"


def message(envelope: Envelope, now: datetime | None = None) -> bytes:
    """Return the bytes to send after DATA, in ASCII, so that they need no extension of the server.

    What all mails of one wording share is made once: headers and encodings cost a millisecond of CPU, most of a mail.
    """
    own = {
        "To": envelope.recipient,
        "Date": format_datetime(now or datetime.now(UTC)),
        "Message-ID": envelope.message_id,
    }
    head = "".join(
        f"{name}:{' ' if len(name) + len(value) < LINE - 1 else FOLD}{value}\r\n" for name, value in own.items()
    )
    return head.encode() + _content(envelope.sender, envelope.written)


def _content(sender: Sender, written: Written) -> bytes:
    """Return the rest of the message: the shared form with the code set in, or one made for this mail alone."""
    if written.code is None:
        return _shared(sender, written)
    digits = SAMPLE[: len(written.code)]
    bodies = written.text, written.html or ""
    marks = sum(body.count(written.code) for body in bodies)
    if not any(digits in body for body in bodies):
        text, html = (body.replace(written.code, digits) for body in bodies)
        form = _shared(
            sender, replace(written, text=text, html=html if written.html is not None else None, code=digits)
        )
        if form.count(digits.encode()) == marks:  # else an encoding broke the digits apart
            return form.replace(digits.encode(), written.code.encode())
    return _shared.__wrapped__(sender, written)


@lru_cache(maxsize=32)
def _shared(sender: Sender, written: Written) -> bytes:
    """Return the message without the headers that each mail has of its own."""
    email = EmailMessage(SMTP)
    email["From"] = _address(sender.name, sender.address)
    email["Subject"] = written.subject
    for name, value in HEADERS.items():
        email[name] = value
    email.set_content(written.text, cte=_encoding(written.text))
    if written.html is not None:
        email.add_alternative(written.html, subtype="html", cte="quoted-printable")
    email["Content-Language"] = written.locale  # last: content headers that are there first move into a part
    return email.as_bytes()


def _encoding(text: str) -> str:
    plain = text.isascii() and all(len(line) <= LINE for line in text.splitlines())
    return "7bit" if plain else "quoted-printable"


def _address(name: str, address: str) -> Address:
    return Address(display_name=name, addr_spec=address)
