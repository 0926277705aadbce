"""The mail server that MAIL_URL names, and in words why a connection to it failed."""

from __future__ import annotations

import os
import re
import socket
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from service.mail.message import ascii_address
from service.settings import SettingsError

if TYPE_CHECKING:
    from service.settings import Settings

Security = Literal["none", "starttls", "tls"]
SMTP_SCHEMES: dict[str, tuple[Security, int]] = {
    "smtp": ("none", 25),
    "smtp+starttls": ("starttls", 587),
    "smtps": ("tls", 465),
}
HTTP_SCHEMES = {"http", "https"}
CERTIFICATE_WORDS = {10: "expired", 18: "self-signed", 19: "self-signed", 20: "unknown issuer", 62: "wrong host name"}
CONNECTION_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (ssl.SSLError, "TLS handshake failed"),
    (socket.gaierror, "host name not found"),
    (ConnectionRefusedError, "connection refused"),
    (TimeoutError, "no answer in time"),
    (ConnectionResetError, "connection closed by the server"),
)


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
    """Return what MAIL_URL names; raises SettingsError, whose text does not repeat it."""
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


def ehlo_name(settings: Settings, sender_domain: str) -> str:
    """Return the name for EHLO: MAIL_EHLO, else the host of PUBLIC_URL, else the sender's domain.

    An address becomes an address literal (RFC 5321, 4.1.3). The machine's own name is never used: in a container it
    is short, and many servers refuse it.
    """
    host = urlsplit(settings.public_url).hostname if settings.public_url else None
    name = settings.mail_ehlo or host or sender_domain
    if ":" in name and not name.startswith("["):
        return f"[IPv6:{name}]"
    if re.fullmatch(r"[0-9.]+", name):
        return f"[{name}]"
    if name.startswith("["):
        return name
    return (ascii_address(f"postmaster@{name}") or sender_domain).rpartition("@")[2]


def connection_reason(error: BaseException) -> str:
    """Return in words why a connection failed; never a host, an address or a reply."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    for one in chain:
        if isinstance(one, ssl.SSLCertVerificationError):
            return f"certificate not trusted: {CERTIFICATE_WORDS.get(one.verify_code, one.verify_message)}"
    for kind, words in CONNECTION_WORDS:
        if any(isinstance(one, kind) for one in chain):
            return words
    numbers = [one.errno for one in chain if isinstance(one, OSError) and one.errno]
    return os.strerror(numbers[0]).lower() if numbers else "connection closed by the server"


def _bad(what: str) -> SettingsError:
    return SettingsError(f"VESTIBULE_MAIL_URL: {what}")
