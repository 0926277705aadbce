"""Reads MAIL_URL: where mails are handed over, and how."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from service.settings import BadSettings

Security = Literal["none", "starttls", "tls"]
SMTP_SCHEMES: dict[str, tuple[Security, int]] = {
    "smtp": ("none", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}
HTTP_SCHEMES = {"http", "https"}


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """An SMTP server; `security` is never less than what was asked for."""

    host: str
    port: int
    security: Security
    user: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class HttpProvider:
    """A mail provider's address; a token alone is sent as Bearer, user and password as Basic."""

    url: str = field(repr=False)
    user: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)


def parse(text: str) -> SmtpServer | HttpProvider:
    """Return what MAIL_URL names; raises BadSettings, whose text does not repeat it."""
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise _bad("is no URL") from None
    if url.scheme not in SMTP_SCHEMES and url.scheme not in HTTP_SCHEMES:
        raise _bad("must begin with smtp://, smtp+starttls://, smtps://, https:// or http://")
    if not host or any(character.isspace() for character in text):
        raise _bad("names no host")
    user = unquote(url.username) if url.username else None
    password = unquote(url.password) if url.password else None
    if url.scheme in HTTP_SCHEMES:
        netloc = (f"[{host}]" if ":" in host else host) + (f":{port}" if port else "")
        bare = urlunsplit((url.scheme, netloc, url.path or "/", url.query, ""))
        return HttpProvider(bare, user if password else None, password or user)
    if url.path.strip("/") or url.query or url.fragment:
        raise _bad("has more than user, password, host and port; write / as %2F and # as %23 in a password")
    security, default_port = SMTP_SCHEMES[url.scheme]
    return SmtpServer(host, port or default_port, security, user, password)


def _bad(what: str) -> BadSettings:
    return BadSettings(f"VESTIBULE_MAIL_URL: {what}")
