"""Whose request it is, for the limits: the peer's, or what trusted proxies say.

Whoever can write a header can write any address in it, so only what a trusted proxy appended counts: the lists are
read from their right end, and reading stops at the first address that is no trusted proxy's, and before the first
entry that names none (RFC 7239 `unknown` and `_hidden`, or junk): what is left of those came from anywhere.

A proxy commonly writes one of `Forwarded` (RFC 7239) and `X-Forwarded-For` and passes the other one through as the
client sent it. When both are there and tell different clients neither is believed, and the request counts for the
proxy: forging the other header brings a client one shared window more, not as many as it likes.

A peer on a Unix socket has no address. It is a proxy that may open the socket's file, and is trusted for that.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

LOCAL = "local"  # who comes through a Unix socket without a forwarded address
PREFIXES = ((64, 1), (48, 4))  # one site's subnet, and a usual delegation: of four subnets' worth, not 65,536

NODE = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*:[^\[\]]*)\]|(?P<plain>[^:\[\]]+))(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?")
PAIR = re.compile(r"""[ \t]*([A-Za-z0-9!#$%&'*+.^_`|~-]+)=(?:"([^"\\]*)"|([^ \t"\\;,]*))[ \t]*""")

Ip = IPv4Address | IPv6Address


class Headers(Protocol):
    """The headers of a request, by name in any case."""

    def getlist(self, key: str) -> list[str]:
        """Return every value of a header, in order."""
        ...


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """The client's address, its limit keys with their multipliers, and whether a stranger sent forwarded headers."""

    address: str = field(repr=False)
    networks: tuple[tuple[str, int], ...] = field(repr=False)
    untrusted_forwarding: bool = False


def client_address(peer: str, headers: Headers, trusted: Sequence[IPv4Network | IPv6Network]) -> ClientAddress:
    """Return whose request it is; never raises, whatever the headers hold.

    `peer` is the address at the other end of the connection, empty on a Unix socket. IPv4 counts by address, also
    when it comes mapped into IPv6; IPv6 by /64 and, at four times the limit, by /48.
    """
    forwarded, x_forwarded_for = headers.getlist("Forwarded"), headers.getlist("X-Forwarded-For")
    nearest = _ip(peer)
    if peer and not _trusted(nearest, trusted):
        return _client(nearest, untrusted_forwarding=bool(forwarded or x_forwarded_for))
    told = [
        _furthest(nearest, ",".join(values), read, trusted)
        for values, read in ((forwarded, _forwarded_node), (x_forwarded_for, _node))
        if values
    ]
    return _client(told[0] if told and told[0] == told[-1] else nearest, untrusted_forwarding=False)


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
