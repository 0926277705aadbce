"""The request's client: its address, its credentials, its language, and what its limits say in the answer's headers."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from math import ceil
from typing import TYPE_CHECKING

from loguru import logger
from quart import g, request
from werkzeug.datastructures import LanguageAccept
from werkzeug.http import parse_accept_header

from actors.authentication import Credentials
from actors.domain.errors import IdempotencyKeyInvalid, InvalidCredentials
from actors.limits import Client
from service.http.middleware import exchange_of
from service.http.schemas import controls
from service.mail.message import FALLBACK, nearest

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from werkzeug.datastructures import Headers

    from actors.domain.rate_limit import Reading
    from service.setting_values import Trusted

Ip = IPv4Address | IPv6Address

LOCAL = "local"  # a client of a Unix socket without a forwarded address
PREFIXES = ((64, 1), (48, 4))  # one site's subnet, and a usual delegation: of four subnets' worth, not 65,536
FORWARDED_UNTRUSTED = "forwarded_untrusted"  # its name among the counters of the process
UNTRUSTED = "Forwarded headers from a peer outside TRUSTED_PROXIES are ignored. If it is your proxy, list its network."
NODE = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*:[^\[\]]*)\]|(?P<plain>[^:\[\]]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
PAIR = re.compile(r"""[ \t]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)=(?:"([^"\\]*)"|([^ \t"\\;,]*))[ \t]*""")
BASIC = re.compile(r"[Bb][Aa][Ss][Ii][Cc] +([A-Za-z0-9+/]+={0,2})")


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The client's address, its limit keys with their multipliers, and whether an untrusted peer forwarded."""

    address: str = field(repr=False)
    networks: tuple[tuple[str, int], ...] = field(repr=False)
    untrusted_forwarding: bool = False


def client_address(peer: str, headers: Headers, proxies: Trusted) -> ClientAddress:
    """Return whose request it is; never raises, whatever the headers hold.

    `peer` is the address at the other end of the connection, empty on a Unix socket. IPv4 counts by address, also
    when it comes mapped into IPv6; IPv6 by /64 and, at four times the limit, by /48.
    """
    forwarded, x_forwarded_for = headers.getlist("Forwarded"), headers.getlist("X-Forwarded-For")
    nearest, trusted = _ip(peer), proxies.networks
    if not (_trusted(nearest, trusted) if peer else proxies.unix):
        return _client(nearest, untrusted_forwarding=bool(forwarded or x_forwarded_for))
    named = [
        _furthest(nearest, ",".join(values), read, trusted)
        for values, read in ((forwarded, _forwarded_node), (x_forwarded_for, _node))
        if values
    ]
    return _client(named[0] if named and named[0] == named[-1] else nearest, untrusted_forwarding=False)


def _client(address: Ip | None, *, untrusted_forwarding: bool) -> ClientAddress:
    if address is None:
        return ClientAddress(LOCAL, ((LOCAL, 1),), untrusted_forwarding)
    text = str(address)
    if isinstance(address, IPv4Address):
        return ClientAddress(text, ((text, 1),), untrusted_forwarding)
    networks = tuple((str(ip_network((address, bits), strict=False)), times) for bits, times in PREFIXES)
    return ClientAddress(text, networks, untrusted_forwarding)


def _furthest(
    nearest: Ip | None, entries: str, read: Callable[[str], Ip | None], trusted: Sequence[IPv4Network | IPv6Network]
) -> Ip | None:
    """Follow the proxies from the nearest one outwards, as far as trusted ones vouch for the next."""
    client = nearest
    for entry in _from_the_right(entries):
        hop = read(entry)
        if hop is None:
            break
        client = hop
        if not _trusted(hop, trusted):
            break
    return client


def _from_the_right(entries: str) -> Iterator[str]:
    """Yield the entries of a list, the last first, without empty ones (RFC 9110, 5.6.1).

    Quotes are matched from the right too, so that an open one, sent by the client, swallows no proxy's entry.
    """
    end, quoted = len(entries), False
    for index in range(len(entries) - 1, -2, -1):
        if index >= 0 and entries[index] == '"':
            quoted = not quoted
        elif index < 0 or (entries[index] == "," and not quoted):
            entry = entries[index + 1 : end].strip(" \t")
            if entry:
                yield entry
            end = index


def _forwarded_node(element: str) -> Ip | None:
    """Return the address of the one `for` in an element of Forwarded."""
    nodes: list[str] = []
    position = 0
    while position <= len(element):
        pair = PAIR.match(element, position)
        if pair is None or element[pair.end() : pair.end() + 1] not in {"", ";"}:
            return None
        if pair[1].lower() == "for":
            nodes.append(pair[2] if pair[2] is not None else pair[3])
        position = pair.end() + 1
    return _node(nodes[0]) if len(nodes) == 1 else None


def _node(text: str) -> Ip | None:
    """Return the address of a node, with or without brackets and port; None for anything else."""
    address = _ip(text)
    if address is not None:
        return address
    match = NODE.fullmatch(text)
    return _ip(match["bracketed"] or match["plain"]) if match is not None else None


def _ip(text: str) -> Ip | None:
    """Return the address without its zone, and IPv4 as such; None when it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    return address.ipv4_mapped or IPv6Address(int(address))


def _trusted(address: Ip | None, trusted: Sequence[IPv4Network | IPv6Network]) -> bool:
    return address is not None and any(address in network for network in trusted)


def basic_credentials(values: Sequence[str]) -> Credentials:
    """Return what the request's Authorization headers carry.

    Raises InvalidCredentials unless there is exactly one, of the Basic scheme, in canonical base64, of UTF-8 with a
    colon and without control characters (RFC 7617, section 2); the first colon ends the address.
    """
    match = BASIC.fullmatch(values[0]) if len(values) == 1 else None
    if match is None:
        raise InvalidCredentials
    email, colon, password = _decoded(match[1]).partition(":")
    if not colon or controls(email) or controls(password):
        raise InvalidCredentials
    return Credentials(email, password)


def _decoded(encoded: str) -> str:
    try:
        raw = b64decode(encoded, validate=True)
        text = raw.decode()
    except ValueError:
        raise InvalidCredentials from None
    if b64encode(raw).decode() != encoded:  # two spellings of one header are one too many
        raise InvalidCredentials
    return text


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
        address = client_address(peer(), request.headers, self._trusted)
        if address.untrusted_forwarding:
            self._warn()
        client = Client(address.networks, exchange_of(request.scope).traceparent)
        g.client = client
        return client

    def _warn(self) -> None:
        if not self._noticed[FORWARDED_UNTRUSTED]:
            logger.warning("forwarded headers from a peer that is no trusted proxy")
            self._note(UNTRUSTED)
        self._noticed[FORWARDED_UNTRUSTED] += 1


def readings() -> Sequence[Reading]:
    """Return what the limits have said about the current request."""
    client: Client | None = g.get("client")
    return client.readings if client is not None else ()


def peer() -> str:
    """Return the address at the other end of the connection; empty on a Unix socket.

    From the scope: a header named Remote-Addr is anybody's.
    """
    client = request.scope.get("client")
    return str(client[0]) if client and client[0] else ""


def credentials() -> Credentials:
    """Return what Basic auth carries; raises InvalidCredentials."""
    return basic_credentials(request.headers.getlist("Authorization"))


def idempotency_key() -> str | None:
    """Return the request's key, for the flows to judge; raises IdempotencyKeyInvalid for two of them."""
    keys = request.headers.getlist("Idempotency-Key")
    if len(keys) > 1:
        raise IdempotencyKeyInvalid
    return keys[0] if keys else None
