"""The request's client: its address, its credentials, its language, and what its limits say in the answer's headers."""

from __future__ import annotations

import re
from base64 import b64decode
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from math import ceil
from typing import TYPE_CHECKING, Any

from loguru import logger
from quart import request
from werkzeug.datastructures import Headers, LanguageAccept
from werkzeug.http import parse_accept_header

from actors.authentication import Credentials
from actors.domain.errors import IdempotencyKeyInvalid, InvalidCredentials
from actors.limits import Client
from service.http.middleware import exchange_of, values_of
from service.http.schemas import controls
from service.mail.message import FALLBACK, nearest

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Sequence

    from actors.domain.rate_limit import Reading
    from service.http.middleware import Scope
    from service.setting_values import Trusted

Ip = IPv4Address | IPv6Address

LOCAL = "local"  # a client of a Unix socket without a forwarded address
PREFIXES = ((64, 1), (48, 4))  # one site's subnet, and a usual delegation: of four subnets' worth, not 65,536
FORWARDED_UNTRUSTED = "forwarded_untrusted"  # its name among the counters of the process
UNTRUSTED = "Forwarded headers from a peer outside TRUSTED_PROXIES are ignored. If it is your proxy, list its network."
NODE = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*:[^\[\]]*)\]|(?P<plain>[^:\[\]]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
QUOTED = re.compile(r'^"([^"]*)"$')


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The client's limit keys with their multipliers, and whether an untrusted peer forwarded."""

    networks: tuple[tuple[str, int], ...] = field(repr=False)
    untrusted_forwarding: bool = False


def client_address(peer: str, headers: Headers, proxies: Trusted) -> ClientAddress:
    """Return whose request it is; never raises, whatever the headers hold.

    `peer` is the address at the other end of the connection, empty on a Unix socket. IPv4 counts by address, also
    when it comes mapped into IPv6; IPv6 by /64 and, at four times the limit, by /48.
    """
    nearest, forwarded = _ip(peer), [headers.getlist(name) for name in ("Forwarded", "X-Forwarded-For")]
    if not (_trusted(nearest, proxies) if peer else proxies.unix):
        return ClientAddress(_networks(nearest), untrusted_forwarding=any(forwarded))
    readers = (_forwarded_node, _node)
    named = {
        _furthest(nearest, ",".join(values), read, proxies)
        for values, read in zip(forwarded, readers, strict=True)
        if values
    }
    return ClientAddress(_networks(named.pop() if len(named) == 1 else nearest))


def _networks(address: Ip | None) -> tuple[tuple[str, int], ...]:
    if isinstance(address, IPv6Address):
        return tuple((str(ip_network((address, bits), strict=False)), times) for bits, times in PREFIXES)
    return ((LOCAL if address is None else str(address), 1),)


def _furthest(nearest: Ip | None, entries: str, read: Callable[[str], Ip | None], proxies: Trusted) -> Ip | None:
    """Follow the proxies from the nearest one outwards, as far as trusted ones vouch for the next.

    Entries are parted at every comma, quoted or not: an open quote of the client's must swallow no proxy's entry.
    """
    client = nearest
    for entry in filter(None, map(str.strip, reversed(entries.split(",")))):
        hop = read(entry)
        if hop is None:
            break
        client = hop
        if not _trusted(hop, proxies):
            break
    return client


def _forwarded_node(element: str) -> Ip | None:
    """Return the address of the one `for` in an element of Forwarded (RFC 7239)."""
    pairs = [pair.partition("=") for pair in element.split(";")]
    nodes = [value.strip() for name, _, value in pairs if name.strip().lower() == "for"]
    return _node(QUOTED.sub(r"\1", nodes[0])) if len(nodes) == 1 else None


def _node(text: str) -> Ip | None:
    """Return the address of a node, with or without brackets and port; None for anything else."""
    match = NODE.fullmatch(text)
    return _ip(match["bracketed"] or match["plain"]) if match is not None else _ip(text)


def _ip(text: str) -> Ip | None:
    """Return the address without its zone, and IPv4 as such; None when it is none."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _trusted(address: Ip | None, proxies: Trusted) -> bool:
    return address is not None and any(address in network for network in proxies.networks)


def authorization(scheme: str, values: Sequence[str]) -> str:
    """Return what the one Authorization header of a request carries under a scheme; empty for anything else."""
    named, _, carried = values[0].partition(" ") if len(values) == 1 else ("", "", "")
    return carried.strip(" ") if named.lower() == scheme else ""


def basic_credentials(values: Sequence[str]) -> Credentials:
    """Return what Basic auth carries; the first colon ends the address (RFC 7617, section 2).

    Raises InvalidCredentials unless it is base64 of UTF-8, with a colon and without control characters.
    """
    try:
        email, colon, password = b64decode(authorization("basic", values), validate=True).decode().partition(":")
    except ValueError:
        raise InvalidCredentials from None
    if not colon or controls(email + password):
        raise InvalidCredentials
    return Credentials(email, password)


def credentials() -> Credentials:
    """Return what the current request's Basic auth carries; raises InvalidCredentials."""
    return basic_credentials(request.headers.getlist("Authorization"))


def choose(asked: str | None, accept_language: str, available: Sequence[str]) -> str:
    """Return the one of `available` that fits best: the body's choice first, else Accept-Language, else English.

    A region falls back to its language before the next wish counts: a reader of `de-AT, en;q=0.5` gets `de`.
    """
    if asked is not None:
        return nearest(asked, available)
    for wish, quality in parse_accept_header(accept_language, LanguageAccept):  # the best first
        served = nearest(wish, available)
        if quality > 0 and (served != FALLBACK or wish.lower().partition("-")[0] == FALLBACK):
            return served
    return FALLBACK


def rate_limit_headers(readings: Iterable[Reading], now: float) -> dict[str, str]:
    """Return the headers for what a request's limits said, in order; none without readings. `now` is in Unix time.

    Limits are ordered by how many more requests they let pass, then by the longer wait: the first one is the closest
    and the one of `X-RateLimit-`, and its reset is the time of a `Retry-After` beside it. Durations are rounded up.
    """
    newest = {reading.rule: reading for reading in readings}  # one that was looked at and then counted: as it is after
    by_name: dict[str, Reading] = {}
    for limit in sorted(newest.values(), key=lambda limit: (limit.remaining, -limit.reset_seconds)):
        by_name.setdefault(limit.rule.name, limit)  # an IPv6 client's two windows share a name, which must be unique
    limits = list(by_name.values())
    if not limits:
        return {}
    closest = limits[0]
    return {
        "RateLimit-Policy": ", ".join(f'"{it.rule.name}";q={it.rule.limit};w={it.rule.seconds}' for it in limits),
        "RateLimit": ", ".join(f'"{it.rule.name}";r={it.remaining};t={_whole(it.reset_seconds)}' for it in limits),
        "X-RateLimit-Limit": str(closest.rule.limit),
        "X-RateLimit-Remaining": str(closest.remaining),
        "X-RateLimit-Reset": str(_whole(now + closest.reset_seconds)),
    }


def _whole(seconds: float) -> int:
    """Round up, but for the microsecond by which a window is longer than its name says."""
    return ceil(seconds - 1e-3)


class Clients:
    """Makes each request's Client; counts forwarded headers from untrusted peers, and warns the operator once.

    They mean a proxy that is not in TRUSTED_PROXIES, behind which all clients share one limit, or a forger.
    """

    def __init__(self, trusted: Trusted, note: Callable[[str], None], noticed: Counter[str]) -> None:
        self._trusted = trusted
        self._note = note
        self._noticed = noticed

    def current(self) -> Client:
        """Return the current request's client, whose readings become headers of the answer."""
        return self.of(request.scope)

    def of(self, scope: Any) -> Client:  # noqa: ANN401 - as `exchange_of` takes it
        """Return a request's client, the same one each time."""
        exchange = exchange_of(scope)
        if exchange.client is None:
            address = client_address(peer(scope), _forwarded(scope), self._trusted)
            if address.untrusted_forwarding:
                self._warn()
            exchange.client = Client(address.networks, exchange.traceparent)
        return exchange.client

    def _warn(self) -> None:
        if not self._noticed[FORWARDED_UNTRUSTED]:
            logger.warning("forwarded headers from a peer that is no trusted proxy")
            self._note(UNTRUSTED)
        self._noticed[FORWARDED_UNTRUSTED] += 1


def readings() -> Sequence[Reading]:
    """Return what the limits have said about the current request."""
    client = exchange_of(request.scope).client
    return client.readings if client is not None else ()


def peer(scope: Any) -> str:  # noqa: ANN401 - as above
    """Return the address at the other end of the connection; empty on a Unix socket.

    From the scope: a header named Remote-Addr is anybody's.
    """
    client = scope.get("client")
    return str(client[0]) if client and client[0] else ""


def _forwarded(scope: Scope) -> Headers:
    return Headers(
        (header.decode(), value.decode("latin-1"))
        for header in (b"forwarded", b"x-forwarded-for")
        for value in values_of(scope, header)
    )


def idempotency_key() -> str | None:
    """Return the request's key, for the flows to judge; raises IdempotencyKeyInvalid for two of them."""
    keys = request.headers.getlist("Idempotency-Key")
    if len(keys) > 1:
        raise IdempotencyKeyInvalid
    return keys[0] if keys else None
