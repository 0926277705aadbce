"""The mail servers of the table, each by what is special about it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.compat.smtp_script import HANG_UP, MODERN, usual

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.compat.smtp_script import Script, ScriptedServer, Session

    Build = Callable[[], Script]

LOGIN = ("shop@example.org", "p:w/d@ü%")  # each character that a URL keeps for itself


def always(reply: str, *at: str) -> Build:
    """Give the same reply at these steps."""
    return lambda: lambda _session, verb, _argument: reply if verb in at else None


def first(number: int, reply: str, at: str) -> Build:
    """Give a reply to the first so many that come to a step."""

    def build() -> Script:
        left = [reply] * number
        return lambda _session, verb, _argument: left.pop() if verb == at and left else None

    return build


def one_a_connection(reply: str, at: str = "MAIL") -> Build:
    """Take one mail over each connection, and refuse the next one there."""
    return lambda: lambda session, verb, _argument: reply if verb == at and session.accepted else None


def strict() -> Script:
    """Know no parameter of MAIL and RCPT, as a server of 1982."""

    def script(_session: Session, verb: str, argument: str) -> str | None:
        return "555 5.5.4 no parameters here" if verb in {"MAIL", "RCPT"} and not argument.endswith(">") else None

    return script


def crowded() -> Script:
    """Serve two connections at a time, and greet the others with a refusal."""
    served: set[int] = set()

    def script(session: Session, verb: str, _argument: str) -> str | None:
        if verb == "CONNECT" and len(served) < 2:
            served.add(session.number)
        if verb == "CLOSED":
            served.discard(session.number)
        return "421 4.7.0 too many connections" if verb == "CONNECT" and session.number not in served else None

    return script


def unchecked_cram() -> Script:
    """Offer CRAM-MD5 and have no password in a form that it could be checked with."""

    def script(_session: Session, verb: str, argument: str) -> str | None:
        return "535 5.7.8 no secret in database" if verb == "AUTH" and argument.startswith("CRAM") else None

    return script


def greylisting(seconds: float) -> Script:
    """Put each recipient off until so long after it was first named."""
    named: dict[str, float] = {}

    def script(session: Session, verb: str, _argument: str) -> str | None:
        if verb != "RCPT":
            return None
        since = named.setdefault(session.recipient, time.monotonic())
        return None if time.monotonic() - since > seconds else "451 4.7.1 greylisted, come back later"

    return script


def without(*names: str) -> dict[str, Any]:
    """Offer less after EHLO."""
    return {"extensions": tuple(one for one in MODERN if one.split()[0] not in names)}


def login(*mechanisms: str) -> dict[str, Any]:
    """Ask for a log-in."""
    return {"login": LOGIN, "mechanisms": mechanisms}


@dataclass(frozen=True, slots=True)
class Takes:
    """A server that takes mail, within so many seconds, and after the walk a crowd of so many."""

    script: Build = field(default=lambda: usual)
    promised: float = 5.0
    crowd: int = 10
    scheme: str = "smtp"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holds:
    """A server that begins to refuse us: what health and log say, and what an operator changes."""

    says: str
    script: Build = field(default=lambda: usual)
    scheme: str = "smtp"
    options: dict[str, Any] = field(default_factory=dict)
    change: Callable[[ScriptedServer], None] = field(default=lambda _server: None)
    untrusted: bool = False


def change(name: str, value: object) -> Callable[[ScriptedServer], None]:
    """Change what a server is."""
    return lambda server: setattr(server, name, value)


TAKES = {
    "modern": Takes(),
    "knows HELO only": Takes(strict, options={"extensions": ()}),
    "no extensions": Takes(strict, options={"extensions": ("HELP",)}),
    "no PIPELINING": Takes(options=without("PIPELINING")),
    "no 8BITMIME": Takes(options=without("8BITMIME", "SMTPUTF8")),
    "no SMTPUTF8": Takes(options=without("SMTPUTF8")),
    "no SIZE": Takes(options=without("SIZE")),
    "AUTH PLAIN": Takes(options=login("PLAIN")),
    "AUTH LOGIN": Takes(options=login("LOGIN")),
    "AUTH CRAM-MD5": Takes(options=login("CRAM-MD5")),
    "AUTH PLAIN among unknown ones": Takes(options=login("GSSAPI", "DIGEST-MD5", "PLAIN", "XOAUTH2")),
    "AUTH CRAM-MD5 offered in vain": Takes(unchecked_cram, options=login("CRAM-MD5", "PLAIN")),
    "STARTTLS": Takes(scheme="smtp+starttls"),
    "STARTTLS, AUTH PLAIN": Takes(scheme="smtp+starttls", options=login("CRAM-MD5", "LOGIN", "PLAIN")),
    "TLS from the start": Takes(scheme="smtps"),
    "IPv6 only": Takes(options={"host": "::1"}),
    "banner after 20 s": Takes(promised=25.0, crowd=0, options={"slow": {"CONNECT": 20.0}}),
    "tarpit of 2 s a reply": Takes(promised=15.0, crowd=0, options={"slow": {"": 2.0}}),
    "one mail a connection, then 421": Takes(one_a_connection("421 4.7.0 enough")),
    "one mail a connection, then 452": Takes(one_a_connection("452 4.5.3 too many mails")),
    "one mail a connection, then 452 at RCPT": Takes(one_a_connection("452 4.5.3 too many recipients", "RCPT")),
    "one mail a connection, then 451": Takes(one_a_connection("451 4.3.0 try another time")),
    "one mail a connection, then 550": Takes(one_a_connection("550 5.5.0 limit reached")),
    "one mail a connection, then cut": Takes(one_a_connection(HANG_UP)),
    "two connections at once": Takes(crowded),
    "421 at connect, once": Takes(first(1, "421 4.3.2 restarting", "CONNECT"), promised=8.0),
    "421 at MAIL, once": Takes(first(1, "421 4.3.2 restarting", "MAIL")),
    "421 at RCPT, twice": Takes(first(2, "421 4.3.2 restarting", "RCPT"), promised=8.0),
    "421 at DATA, once": Takes(first(1, "421 4.3.2 restarting", "DATA"), promised=8.0),
    "421 after the content, once": Takes(first(1, "421 4.3.2 restarting", "."), promised=8.0),
    "cut at RCPT, twice": Takes(first(2, HANG_UP, "RCPT"), promised=8.0),
    "greylisting for 1 s": Takes(lambda: greylisting(1.0), promised=8.0),
}

DENIED = "554 5.7.1 <ada@example.com>: Relay access denied"
HELO = "504 5.5.2 <app>: Helo command rejected: need fully-qualified hostname"
HOLDS = {
    "connection refused for now": Holds(
        "421 4.3.2 service not available at connect", always("421 4.3.2 full", "CONNECT")
    ),
    "connection refused": Holds("554 5.7.1 not permitted at connect", always("554 5.7.1 not you", "CONNECT")),
    "connection cut": Holds("connection closed by the server at connect", always(HANG_UP, "CONNECT")),
    "name refused at EHLO": Holds("550 5.7.1 not permitted at EHLO", always("550 5.7.1 who?", "EHLO", "HELO")),
    "name refused at RCPT": Holds("504 5.5.2 host name refused", always(HELO, "RCPT")),
    "sender refused": Holds("553 5.7.1 not permitted at MAIL", always("553 5.7.1 not yours", "MAIL")),
    "sender's domain unknown": Holds("450 4.1.8", always("450 4.1.8 Domain not found", "MAIL")),
    "log-in asked for": Holds("530 5.7.0 authentication required at MAIL", always("530 5.7.0 first", "MAIL")),
    "relaying refused": Holds("554 5.7.1 relaying denied at RCPT", always(DENIED, "RCPT")),
    "too many mails": Holds(
        "450 4.7.1 too much for the server", always("450 4.7.1 Error: too much mail from 127.0.0.1", "RCPT")
    ),
    "listed as a spammer": Holds("554 5.7.1 blocked", always("554 5.7.1 Client host blocked using zen", "RCPT")),
    "disk full": Holds("452 4.3.1", always("452 4.3.1 Insufficient system storage", "MAIL")),
    "content scanner away": Holds("451 4.3.0 error at the server at DATA", always("451 4.3.0 queue error", ".")),
    "wrong password": Holds(
        "535 5.7.8 authentication failed", options=login("PLAIN"), change=change("login", (LOGIN[0], "another"))
    ),
    "wrong password, TLS": Holds(
        "535 5.7.8 authentication failed",
        scheme="smtp+starttls",
        options=login("CRAM-MD5", "LOGIN", "PLAIN"),
        change=change("login", (LOGIN[0], "another")),
    ),
    "log-in away": Holds(
        "454 4.7.0 not available for now", always("454 4.7.0 backend away", "AUTH"), options=login("PLAIN")
    ),
    "no known mechanism": Holds(
        "no AUTH offered that we know", options=login("PLAIN"), change=change("mechanisms", ("XOAUTH2",))
    ),
    "STARTTLS not offered": Holds("no STARTTLS offered", scheme="smtp+starttls", change=change("context", None)),
    "certificate not trusted": Holds("certificate not trusted", scheme="smtp+starttls", untrusted=True),
    "certificate not trusted, TLS from the start": Holds("certificate not trusted", scheme="smtps", untrusted=True),
    "STARTTLS refused": Holds(
        "454 4.7.0 not available for now at STARTTLS",
        always("454 4.7.0 TLS not available", "STARTTLS"),
        scheme="smtp+starttls",
    ),
    "STARTTLS refused for good": Holds("502 5.5.1 at STARTTLS", always("502 5.5.1 no", "STARTTLS"), "smtp+starttls"),
}

# About the recipient, its mailbox, the size or the content: nothing that an operator of ours could mend.
KILLS = {
    "no such user": ("RCPT", "550 5.1.1 no such user"),
    "no such user, in bare words": ("RCPT", "550 No such user here"),
    "no such domain": ("RCPT", "550 5.1.2 bad destination system"),
    "mailbox off": ("RCPT", "550 5.2.1 mailbox disabled"),
    "mailbox full": ("RCPT", "552 5.2.2 over quota"),
    "mailbox full after the content": (".", "552 5.2.2 over quota"),
    "too big": (".", "552 5.3.4 message too big"),
    "too big, in bare words": (".", "552 message size exceeds fixed limit"),
    "spam": (".", "554 5.7.1 spam"),
    "malformed": (".", "554 5.6.0 malformed"),
}
