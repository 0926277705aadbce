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
from service.http.visits import peer

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

    from service.settings import Settings

BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(\S+)")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")
FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "via")


class OpsAccess:
    """Checks requests against the settings."""

    def __init__(self, settings: Settings) -> None:
        self._token = settings.ops_token

    def check(self) -> None:
        """Let the current request pass, or raise OpsTokenMissing or OpsTokenRequired."""
        if self._token is not None:
            if not bears(request.headers, self._token.get_secret_value()):
                raise OpsTokenMissing
        elif not from_this_machine(peer(), request.headers):
            raise OpsTokenRequired


def bears(headers: Headers, token: str) -> bool:
    """Whether the one Authorization header carries the token; compared in constant time."""
    values = headers.getlist("Authorization")
    match = BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return match is not None and hmac.compare_digest(match[1].encode(), token.encode())


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
