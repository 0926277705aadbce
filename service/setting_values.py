"""How the values of settings are read from text; each reader raises ValueError with a phrase that fits after the name.

No phrase repeats a value, which may be a secret; a key's id is none.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Annotated
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, SecretStr

from actors.domain.rate_limit import Rule

if TYPE_CHECKING:
    from collections.abc import Callable

PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
MOST_IN_A_WINDOW = 1_000_000
KEY_BYTES = 32  # of a code key: as many as the hash it keys
KID = re.compile(r"[A-Za-z0-9_-]{1,16}")
MOST_PORT = 65535
REDIS = ("redis", "rediss", "unix")
MAIL = ("smtp", "smtp+starttls", "smtps", "http", "https")
WEB_PORTS = {"http": 80, "https": 443}


def of_text(reader: Callable[[str], object]) -> BeforeValidator:
    """Return a validator that applies the reader to text and leaves values of the program alone."""
    return BeforeValidator(lambda value: reader(value) if isinstance(value, str) else value)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def rule(name: str, text: str) -> Rule | None:
    """Read `5/hour` or `off`."""
    if text == "off":
        return None
    amount, _, period = text.partition("/")
    digits = amount.isascii() and amount.isdigit()
    if not digits or not 1 <= int(amount) <= MOST_IN_A_WINDOW or period not in PERIODS:
        raise ValueError("must be N/second, N/minute, N/hour, N/day or off")
    return Rule(name, int(amount), PERIODS[period])


def rules(text: str) -> tuple[Rule, ...]:
    """Read `5/hour,10/day` or `off`."""
    if text == "off":
        return ()
    read = [rule("codes", part) for part in _parts(text)]
    found = tuple(each for each in read if each is not None)
    if not found or len(found) < len(read):
        raise ValueError("must be N/second, N/minute, N/hour or N/day, several of them separated by commas, or off")
    return found


@dataclass(frozen=True, slots=True)
class Trusted:
    """The proxies whose forwarded headers count: their networks, and the peer of a Unix socket or not."""

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False


def trusted(text: str) -> Trusted:
    """Read CIDRs, and the word `unix`."""
    parts = _parts(text)
    try:
        return Trusted(tuple(ip_network(part) for part in parts if part != "unix"), "unix" in parts)
    except ValueError:
        raise ValueError("must be networks such as 10.0.0.0/8,fd00::/8, without host bits, or unix") from None


def host_name(text: str) -> str:
    """Read what is said after EHLO (RFC 5321, 4.1.1.1): a domain name or an address literal."""
    if not re.fullmatch(r"[A-Za-z0-9.-]{1,255}|\[[0-9A-Fa-f:.IPv]{2,64}\]", text):
        raise ValueError("must be a host name such as mail.example.com")
    return text


def _url(text: str) -> SplitResult:
    """Split a URL; raises ValueError for one without a host, or with blanks or a port that is none."""
    url = urlsplit(text)
    if not url.hostname or url.port == 0 or re.search(r"[\s\x00-\x1f\x7f]", text):
        raise ValueError
    return url


def origins(text: str) -> tuple[str, ...]:
    """Read `https://app.example.com,…`, as browsers write an origin."""
    return tuple(map(_origin, _parts(text)))


def _origin(text: str) -> str:
    try:
        url = _url(text.rstrip("/"))
        written = f"{url.scheme}://{url.netloc}"  # no browser writes the port that goes without saying, or non-ASCII
        exact = url.port != WEB_PORTS.get(url.scheme, url.port) and written == text.rstrip("/") and text.isascii()
    except ValueError:
        exact = False
    if not exact or "@" in text or "*" in text:
        raise ValueError("must be exact origins such as https://app.example.com, separated by commas")
    return text.rstrip("/").lower()


def web_address(text: str) -> str:
    """Read where people reach the service, without the slash at its end."""
    try:
        url = _url(text)
        plain = url.scheme in {"http", "https"} and not (url.query or url.fragment or "@" in url.netloc)
    except ValueError:
        plain = False
    if not plain:
        raise ValueError("must be a web address such as https://accounts.example.com")
    return text.rstrip("/")


def _server_url(schemes: tuple[str, ...], text: str) -> SecretStr:
    try:
        known = urlsplit(text).scheme in schemes
    except ValueError:
        known = False
    if not known:
        raise ValueError(f"must be a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}")
    return SecretStr(text)


def database_url(text: str) -> SecretStr:
    """Read a URL as libpq does: it ends the password at the first @ or /, and names the rest in its errors."""
    url = _server_url(("postgresql", "postgres"), text)
    place, _, rest = text.partition("://")[2].partition("?")[0].partition("/")
    if place.count("@") > 1 or "@" in rest:
        raise ValueError("must have @ and / in its user and password percent-encoded")
    return url


def listener(text: str) -> str:
    """Read `host:port`, `[v6]:port` or `unix:/path`."""
    if text.startswith("unix:"):
        if not text.removeprefix("unix:"):
            raise ValueError("must name a path after unix:")
        return text
    host, colon, port = text.rpartition(":")
    bare_v6 = ":" in host and not (host.startswith("[") and host.endswith("]"))
    if not colon or bare_v6 or not (port.isascii() and port.isdigit()) or int(port) > MOST_PORT:
        raise ValueError("must be host:port, [v6]:port or unix:/path")
    return text


def sender(text: str) -> str:
    """Read `address` or `Name <address>` as far as a header of a mail could be split by it."""
    if "@" not in text or not text.isprintable():
        raise ValueError("must be an address, or Name <address>")
    return text


def token(text: str) -> SecretStr:
    """Read a secret that a Bearer header can carry (RFC 6750): visible ASCII, no blanks; raises ValueError."""
    if not all("!" <= character <= "~" for character in text):
        raise ValueError("must be visible ASCII characters without blanks; make one with: openssl rand -hex 24")
    return SecretStr(text)


def is_loopback(bind: str) -> bool:
    """Whether only this machine can reach the listener; a name other than `localhost` may lead anywhere.

    A Unix socket's peers are of this machine, but HTTP takes none for an operator without the token.
    """
    host = bind.rpartition(":")[0].strip("[]")
    if bind.startswith("unix:") or host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def keys(text: str) -> dict[str, bytes]:
    """Read `kid:base64,…`; each key at least 32 bytes."""
    read: dict[str, bytes] = {}
    for part in text.split(","):
        kid, colon, encoded = part.strip().partition(":")
        if not colon or not KID.fullmatch(kid) or kid in read:
            raise ValueError("must be kid:base64,… with different key ids of letters, digits, - and _")
        try:
            read[kid] = base64.b64decode(encoded, validate=True)
        except ValueError:
            raise ValueError(f"key {kid} is not base64") from None
        if len(read[kid]) < KEY_BYTES:
            raise ValueError(f"key {kid} has fewer than {KEY_BYTES} bytes; make one with: openssl rand -base64 32")
    return read


def limit(name: str) -> BeforeValidator:
    """Return the validator of a limit whose rule has this name."""
    return of_text(partial(rule, name))


UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
AGO = re.compile(r"(\d{1,6})([smhd])", re.ASCII)
FORMS = "must be 90s, 30m, 2h, 1d or a time like 2026-01-31T12:00:00Z"


def moment(text: str) -> datetime:
    """Read `90s`, `30m`, `2h` or `1d` ago, or an RFC 3339 time (UTC where it names no zone); raises ValueError."""
    try:
        if ago := AGO.fullmatch(text):
            return datetime.now(UTC) - timedelta(**{UNITS[ago[2]]: int(ago[1])})
        parsed = datetime.fromisoformat(text)
    except (ValueError, OverflowError):  # the latter before the year 1
        raise ValueError(FORMS) from None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


CodeKeys = Annotated[dict[str, bytes], of_text(keys)]
TrustedProxies = Annotated[Trusted, of_text(trusted)]
HostName = Annotated[str, of_text(host_name)]
Origins = Annotated[tuple[str, ...], of_text(origins)]
CodeLimits = Annotated[tuple[Rule, ...], of_text(rules)]
Bind = Annotated[str, of_text(listener)]
Sender = Annotated[str, of_text(sender)]
Token = Annotated[SecretStr, of_text(token)]
WebAddress = Annotated[str, of_text(web_address)]
DatabaseUrl = Annotated[SecretStr, of_text(database_url)]
RedisUrl = Annotated[SecretStr, of_text(partial(_server_url, REDIS))]
MailUrl = Annotated[SecretStr, of_text(partial(_server_url, MAIL))]
