"""Writes a mail: wording from templates in the reader's language, addresses that servers take, and the MIME message.

The operator's folder (MAIL_TEMPLATES) replaces single templates and adds languages. All templates are checked before
the first mail needs them. See templates/README.md.
"""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import idna
from jinja2 import ChoiceLoader, Environment, FileSystemLoader, StrictUndefined, TemplateError, meta, select_autoescape

from actors.domain.mail import MailKind, Rejected
from service.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from actors.domain.mail import ClaimedMail
    from service.settings import Settings

BUILT_IN = Path(__file__).parent / "templates"
FALLBACK = "en"
LAYOUT = "layout.html"
IGNORED = {LAYOUT, "README", "README.md", "README.txt"}
TEMPLATE_NAME = re.compile(r"(?P<kind>code|notice)\.(?P<locale>[a-z]{2,3}(-[A-Za-z0-9]{2,8})*)\.(?P<form>txt|html)")
PLACEHOLDERS = {"code", "seconds", "site", "public_url", "locale"}
SUBJECT = "Subject:"
SAMPLES = ("9472063185", "6183590274")  # codes of up to ten digits: what differs between them differs for every code
BOUNDARY = "=_vestibule"  # the same in every mail, to share a form; no quoted-printable text holds `=_` (RFC 2045, 6.7)
PLAIN_LINE = 78  # characters of a line that travels as it is (RFC 5322, 2.1.1)
ATOMS = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*")
QUOTED = re.compile(r'"([\x20-\x21\x23-\x5b\x5d-\x7e]|\\[\x20-\x7e])*"')
DOMAIN = re.compile(r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")
HEADERS = {
    "Auto-Submitted": "auto-generated",  # RFC 3834: nobody answers it by machine
    "X-Auto-Response-Suppress": "All",  # the same for Exchange, which does not know the RFC
}


def ascii_address(text: str) -> str | None:
    """Return the address with its domain in ASCII (IDNA 2008); None for what no server takes without SMTPUTF8."""
    local, _, domain = text.rpartition("@")
    if not domain.isascii():
        try:
            domain = idna.encode(domain, uts46=True).decode("ascii")
        except idna.IDNAError:
            return None
    sound = (ATOMS.fullmatch(local) or QUOTED.fullmatch(local)) and DOMAIN.fullmatch(domain)
    return f"{local}@{domain}" if sound else None


@dataclass(frozen=True, slots=True)
class Sender:
    """Who mails come from: the name that people see, if there is one, and the address."""

    name: str
    address: str

    @classmethod
    def parse(cls, text: str) -> Sender:
        """Read MAIL_FROM, `address` or `Name <address>`; raises SettingsError."""
        name, typed = parseaddr(text)
        whole = text.strip() == typed or text.rstrip().endswith(f"<{typed}>")
        address = ascii_address(typed)
        if address is None or not whole or not text.isprintable():
            raise SettingsError("VESTIBULE_MAIL_FROM: must be an address, or Name <address>")
        return cls(name, address)

    @property
    def domain(self) -> str:
        """The address' part after the `@`."""
        return self.address.rpartition("@")[2]

    def __str__(self) -> str:
        return str(Address(self.name, addr_spec=self.address))


@dataclass(frozen=True, slots=True)
class Message:
    """A mail ready to leave. `message_id` is the same for every attempt, so that servers can drop a repeat.

    `html` is None where there is no such template. `mime` is all of the message but the headers of this one mail.
    """

    sender: Sender
    recipient: str = field(repr=False)
    message_id: str
    locale: str
    subject: str
    text: str = field(repr=False)
    html: str | None = field(repr=False)
    mime: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Return the bytes to send after DATA, in ASCII, so that they need no extension of the server."""
        own = {"To": self.recipient, "Date": format_datetime(datetime.now(UTC)), "Message-ID": self.message_id}
        head = "".join(
            f"{name}:{' ' if len(name) + len(value) < PLAIN_LINE - 1 else SMTP.linesep + ' '}{value}{SMTP.linesep}"
            for name, value in own.items()
        )
        return head.encode() + self.mime


class Messages:
    """Writes messages; one for a process.

    Raises SettingsError, with one line, for a sender or a template that could not make a mail.
    """

    def __init__(self, settings: Settings) -> None:
        self.sender = Sender.parse(settings.mail_from)
        self._templates = Templates(settings, self.sender.name)
        self._form = lru_cache(maxsize=64)(self._build_form)

    def write(self, mail: ClaimedMail, code: str | None) -> Message:
        """Return the mail as a message; raises Rejected for a recipient that no mail server takes.

        What all mails of a kind and language share is made once: it costs a millisecond of CPU, most of a mail.
        """
        locale, own = nearest(mail.locale, self._templates.locales), self._own(mail.recipient, mail.id)
        form = self._form(mail.kind, locale, len(code)) if code is not None else None
        if code is None or form is None:
            return replace(self._built(mail.kind, locale, code), **own)
        sample = SAMPLES[0][: len(code)]
        html = None if form.html is None else form.html.replace(sample, code)
        mime = form.mime.replace(sample.encode(), code.encode())
        return replace(form, text=form.text.replace(sample, code), html=html, mime=mime, **own)

    def test(self, recipient: str, test_id: UUID) -> Message:
        """Return the mail of `vestibule check --send-to`; raises Rejected as `write` does."""
        text = "This is a test mail from Vestibule. Mails reach this address.\n"
        return replace(self._message(FALLBACK, "Test mail from Vestibule", text, None), **self._own(recipient, test_id))

    def _own(self, recipient: str, mail: UUID) -> dict[str, Any]:
        """Return what a message has of its own; its id does not tell the mail's, which stays inside."""
        digest, address = hashlib.sha256(mail.bytes).hexdigest(), ascii_address(recipient)
        if address is None:
            raise Rejected("the recipient is no address for SMTP")
        return {"recipient": address, "message_id": f"<{digest[:32]}@{self.sender.domain}>"}

    def _build_form(self, kind: MailKind, locale: str, digits: int) -> Message | None:
        """Return the message that carries the first sample code.

        None where replacing the sample would not make the message of another code: the template groups its digits,
        say, or has a number that looks like the sample.
        """
        sample, other = (sample[:digits] for sample in SAMPLES)
        form, expected = self._built(kind, locale, sample), self._built(kind, locale, other)
        same = form.mime.replace(sample.encode(), other.encode()) == expected.mime
        return form if same else None

    def _built(self, kind: MailKind, locale: str, code: str | None) -> Message:
        return self._message(locale, *self._templates.render(kind, locale, code))

    def _message(self, locale: str, subject: str, text: str, html: str | None) -> Message:
        email = EmailMessage(SMTP)
        email["From"] = Address(self.sender.name, addr_spec=self.sender.address)
        email["Subject"] = subject
        for name, value in HEADERS.items():
            email[name] = value
        plain = text.isascii() and all(len(line) <= PLAIN_LINE for line in text.splitlines())
        email.set_content(text, cte="7bit" if plain else "quoted-printable")
        if html is not None:
            email.add_alternative(html, subtype="html", cte="quoted-printable")
            email.set_boundary(BOUNDARY)
        email["Content-Language"] = locale  # last: content headers that are there first move into a part
        return Message(self.sender, "", "", locale, subject, text, html, email.as_bytes())


class Templates:
    """The templates of this service: an operator's file replaces the built-in one of the same name.

    Raises SettingsError, with one line that names the file, for a template that could not become a mail.
    """

    def __init__(self, settings: Settings, sender_name: str) -> None:
        self._loader = ChoiceLoader([FileSystemLoader(folder) for folder in _folders(settings)])
        self._environment = Environment(
            loader=self._loader,
            autoescape=select_autoescape(("html",), default_for_string=False),
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        public_url = settings.public_url
        self._facts: dict[str, Any] = {
            "seconds": settings.code_ttl_seconds,
            "public_url": public_url,
            "site": sender_name or (urlsplit(public_url).hostname if public_url else None),
        }
        self._names = _template_names(settings)
        self.locales = available_locales(settings)
        for name in sorted(self._names):
            self._check(name)

    def render(self, kind: MailKind, locale: str, code: str | None) -> tuple[str, str, str | None]:
        """Return subject, text and HTML; no HTML where there is no such template."""
        facts = {**self._facts, "code": code, "locale": locale}
        head, _, text = self._rendered(f"{kind}.{locale}.txt", facts).partition("\n")
        name = f"{kind}.{locale}.html"
        html = self._rendered(name, facts) if name in self._names else None
        return " ".join(head.removeprefix(SUBJECT).split()), text.strip("\n") + "\n", html

    def _rendered(self, name: str, facts: dict[str, Any]) -> str:
        return self._environment.get_template(name).render(facts)

    def _check(self, name: str) -> None:
        """Refuse a template that does not parse, uses an unknown placeholder, or makes no proper mail."""
        code = SAMPLES[0] if name.startswith("code.") else None
        try:
            source, _, _ = self._loader.get_source(self._environment, name)
            unknown = meta.find_undeclared_variables(self._environment.parse(source)) - PLACEHOLDERS
            if unknown:
                raise _bad(name, f"asks for {min(unknown)}; there is {', '.join(sorted(PLACEHOLDERS))}")
            for public_url in (None, "https://example.com"):
                facts = {**self._facts, "public_url": public_url, "locale": FALLBACK, "code": code}
                _check_mail(name, self._rendered(name, facts), code)
        except (TemplateError, UnicodeDecodeError, TypeError) as error:
            raise _bad(name, str(error).partition("\n")[0] or type(error).__name__) from None


def available_locales(settings: Settings) -> tuple[str, ...]:
    """Return the language tags in which every kind of mail can be written; English is always the first."""
    texts = [TEMPLATE_NAME.fullmatch(name) for name in _template_names(settings)]
    locales = {found["locale"] for found in texts if found}
    return (FALLBACK, *sorted(locales - {FALLBACK}))


def nearest(locale: str, available: Sequence[str]) -> str:
    """Return the one of `available` that serves `locale`: `de-AT`, else `de`, else English (RFC 4647, lookup)."""
    known = {tag.lower(): tag for tag in available}
    wanted = locale.lower().replace("_", "-")
    while wanted:
        if wanted in known:
            return known[wanted]
        wanted = wanted.rpartition("-")[0]
    return FALLBACK


def _folders(settings: Settings) -> tuple[Path, ...]:
    return (BUILT_IN,) if settings.mail_templates is None else (Path(settings.mail_templates), BUILT_IN)


def _template_names(settings: Settings) -> set[str]:
    """Return the names of all templates; refuses what else the operator's folder holds, and half a language.

    Names that begin with a dot are not ours: a mounted ConfigMap has some.
    """
    try:
        files = {path.name for folder in _folders(settings) for path in folder.iterdir() if path.is_file()}
    except OSError as error:
        cause = f"cannot read {settings.mail_templates}: {error.strerror}"
        raise SettingsError(f"VESTIBULE_MAIL_TEMPLATES: {cause}") from None
    names = {name for name in files if not name.startswith(".")} - IGNORED
    for name in sorted(names):
        found = TEMPLATE_NAME.fullmatch(name)
        if found is None:
            raise _bad(name, "is no template; they are named like code.en.txt, code.en.html, notice.en.txt")
        for needed in (f"{kind}.{found['locale']}.txt" for kind in MailKind):
            if needed not in names:
                raise _bad(name, f"needs {needed} beside it")
    return names


def _check_mail(name: str, mail: str, code: str | None) -> None:
    if not name.endswith(".txt"):
        return
    head, _, text = mail.partition("\n")
    if not head.startswith(SUBJECT) or not head.removeprefix(SUBJECT).strip():
        raise _bad(name, "must begin with a line `Subject: …`")
    if code and code in head:
        raise _bad(name, "must not show the code in its subject: lock screens show subjects")
    if code and code not in text.splitlines():
        raise _bad(name, "must have {{ code }} alone on a line")


def _bad(name: str, what: str) -> SettingsError:
    return SettingsError(f"VESTIBULE_MAIL_TEMPLATES: {name} {what}")
