"""Who may see what is for operators: the holder of the token, or without a token set this machine itself.

The second rule is for development. A page of another host that a browser of this machine shows could ask us by a
name of its own (DNS rebinding), and a proxy on this machine forwards strangers; hence the looks at Host and at
forwarded headers.
"""

from __future__ import annotations

import hmac
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from quart import request

from service.http.errors import OpsTokenMissing, OpsTokenRequired
from service.http.ops_guesses import OpsGuesses
from service.http.visits import peer

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

    from actors.kit.mailbox import Address
    from service.http.visits import Visits
    from service.settings import Settings

BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(\S+)")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")
FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "via")


class OpsAccess:
    """Checks requests against the settings, and lets no client guess for long."""

    def __init__(self, settings: Settings, visits: Visits, limiter: Address) -> None:
        self._token = None if settings.ops_token is None else settings.ops_token.get_secret_value().encode()
        self._visits = visits
        self._guesses = OpsGuesses(limiter)

    async def check(self) -> None:
        """Let the current request pass, or raise OpsTokenMissing, OpsTokenRequired or RateLimited."""
        if self._token is None:
            if not from_this_machine(peer(), request.headers):
                raise OpsTokenRequired
            return
        typed = bearer(request.headers)
        if typed is None:  # nothing is compared, so nothing was guessed
            raise OpsTokenMissing
        await self.check_token(typed)

    async def check_token(self, typed: str) -> None:
        """Return if this is the token; raises OpsTokenMissing, or RateLimited for a client that has guessed too often.

        Compared in constant time; nothing is the token where none is set.
        """
        right = self._token is not None and hmac.compare_digest(self._token, typed.encode(errors="replace"))
        await self._guesses.hear(self._visits.begin(), wrong=not right)
        if not right:
            raise OpsTokenMissing


def bearer(headers: Headers) -> str | None:
    """Return what the one Authorization header carries; None for another scheme, or another number of headers."""
    values = headers.getlist("Authorization")
    match = BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else match[1]


def from_this_machine(client: str, headers: Headers) -> bool:
    """Whether a loopback peer asked for a loopback name without any proxy between, as far as headers tell.

    A Unix socket has no peer address: it is there for a proxy, and counts as another machine.
    """
    if any(name.lower().startswith(FORWARDED) for name in headers.keys()):  # noqa: SIM118 - not a dict
        return False
    hosts = headers.getlist("Host")
    match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return match is not None and _loopback(client) and _loopback_name(match[1].strip("[]"))


def _loopback(client: str) -> bool:
    try:
        address = ip_address(client)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _loopback_name(name: str) -> bool:
    return name.lower().rstrip(".") == "localhost" or _loopback(name)
