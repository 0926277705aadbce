from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from service.http.client_address import LOCAL, ClientAddress, client_address

TRUSTED = tuple(ip_network(text) for text in ("10.0.0.0/8", "fd00::/8"))
PROXY = "10.0.0.1"


def of(peer: str, *, forwarded: str | None = None, xff: str | None = None) -> ClientAddress:
    """Return the client of a request with these headers, where 10/8 and fd00::/8 are trusted."""
    headers = Headers()
    if forwarded is not None:
        headers.add("Forwarded", forwarded)
    if xff is not None:
        headers.add("X-Forwarded-For", xff)
    return client_address(peer, headers, TRUSTED)


def test_a_stranger_is_who_it_is() -> None:
    """An untrusted peer's headers change nothing, and are noticed."""
    assert of("192.0.2.7") == ClientAddress("192.0.2.7", (("192.0.2.7", 1),), untrusted_forwarding=False)
    for client in (of("192.0.2.7", xff="203.0.113.9"), of("192.0.2.7", forwarded="for=203.0.113.9")):
        assert client == ClientAddress("192.0.2.7", (("192.0.2.7", 1),), untrusted_forwarding=True)


def test_without_trusted_proxies_nobody_is_believed() -> None:
    """By default a private or loopback peer is a stranger too."""
    headers = Headers({"X-Forwarded-For": "203.0.113.9"})
    assert client_address("127.0.0.1", headers, ()).address == "127.0.0.1"
    assert client_address("127.0.0.1", headers, ()).untrusted_forwarding


def test_a_trusted_proxy_alone_is_the_client() -> None:
    """A proxy that forwards nothing speaks for itself."""
    assert of(PROXY) == ClientAddress(PROXY, ((PROXY, 1),), untrusted_forwarding=False)


@pytest.mark.parametrize(
    ("entries", "client"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9, 10.1.1.1,10.2.2.2", "203.0.113.9"),
        ("10.3.3.3, 10.2.2.2", "10.3.3.3"),
        ("203.0.113.9:4711", "203.0.113.9"),
        ("2001:db8::7", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
        ("[::ffff:203.0.113.9]:1", "203.0.113.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:db8::7, ::ffff:10.0.0.9", "2001:db8::7"),
        (" ,203.0.113.9 ,, ", "203.0.113.9"),
        ("203.0.113.9, fd00::1", "203.0.113.9"),
    ],
)
def test_the_right_most_untrusted_address_of_a_list(entries: str, client: str) -> None:
    """Trusted hops are passed over from the right; ports, brackets, zones and mapped addresses are read."""
    assert of(PROXY, xff=entries).address == client


@pytest.mark.parametrize(
    "junk",
    ["unknown", "_hidden", "example.com", "203.0.113", "203.0.113.09", "[203.0.113.8]", "2001:db8::7:99999x", "'", "1"],
)
def test_nothing_left_of_junk_is_believed(junk: str) -> None:
    """An entry that names no address ends the reading at the last good one."""
    assert of(PROXY, xff=f"203.0.113.9, {junk}").address == PROXY
    assert of(PROXY, xff=f"203.0.113.9, {junk}, 10.7.7.7").address == "10.7.7.7"


@pytest.mark.parametrize(
    ("elements", "client"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('For="203.0.113.9:4711";proto=https;by=10.0.0.1', "203.0.113.9"),
        ('proto=https ; FOR="[2001:db8::7]:_port" , for=10.9.9.9', "2001:db8::7"),
        ('host="a,b;for=1.1.1.1";for=203.0.113.9', "203.0.113.9"),
        ("for=198.51.100.1, for=203.0.113.9", "203.0.113.9"),
        ('for="[2001:db8::7]"', "2001:db8::7"),
    ],
)
def test_the_for_of_a_forwarded_element(elements: str, client: str) -> None:
    """RFC 7239's elements, quoted or not, in any order and case."""
    assert of(PROXY, forwarded=elements).address == client


@pytest.mark.parametrize(
    "element",
    [
        "for=unknown",
        "for=_SEVKISEK",
        "proto=https",
        "for=203.0.113.9;for=203.0.113.8",
        "for=203.0.113.9 for=1.1.1.1",
        'for="203.0.113.9',
        'for="203.0.113\\.9"',
        "for",
        "=203.0.113.9",
        ";",
        "203.0.113.9",
    ],
)
def test_a_forwarded_element_without_one_address_ends_the_reading(element: str) -> None:
    """Unknown, hidden, missing, doubled and broken nodes leave the proxy as the client."""
    assert of(PROXY, forwarded=f"for=198.51.100.1, {element}").address == PROXY


@pytest.mark.parametrize("opening", ['for="', 'for="a, for=b', '"', 'for="\\', 'for=x;by="', '",for="'])
def test_an_open_quote_swallows_no_proxy_s_entry(opening: str) -> None:
    """What a client sends to the left of the proxy's own element cannot change how that is read."""
    for own in ("for=203.0.113.9", 'for="203.0.113.9:1"', 'by="x";for="203.0.113.9"'):
        assert of(PROXY, forwarded=f"{opening}, {own}").address == "203.0.113.9"


def test_a_list_over_several_lines_is_one_list() -> None:
    """Repeated headers are read as one, the last line last."""
    headers = Headers([("X-Forwarded-For", "198.51.100.1"), ("x-forwarded-for", "203.0.113.9, 10.1.1.1")])
    assert client_address(PROXY, headers, TRUSTED).address == "203.0.113.9"


def test_two_headers_that_differ_are_not_believed() -> None:
    """When both headers are there they must name the same client, else the request counts for the proxy."""
    assert of(PROXY, forwarded='for="203.0.113.9:7"', xff="203.0.113.9").address == "203.0.113.9"
    assert of(PROXY, forwarded="for=203.0.113.9", xff="203.0.113.8").address == PROXY
    assert of(PROXY, forwarded="for=unknown", xff="203.0.113.8").address == PROXY
    assert of(PROXY, forwarded="", xff="203.0.113.8").address == PROXY


def test_a_unix_socket_s_peer_is_a_trusted_proxy() -> None:
    """Who may open the socket's file is believed; without a header all of them share one window."""
    assert of("", xff="198.51.100.1, 203.0.113.9").address == "203.0.113.9"
    assert of("") == ClientAddress(LOCAL, ((LOCAL, 1),), untrusted_forwarding=False)


def test_ipv6_counts_by_site_and_by_delegation() -> None:
    """IPv6 has a window for its /64 and one of four times the limit for its /48; mapped IPv4 has one."""
    assert of("2001:db8:1:2:3::4").networks == (("2001:db8:1:2::/64", 1), ("2001:db8:1::/48", 4))
    assert of("::ffff:192.0.2.7").networks == (("192.0.2.7", 1),)
    assert of("fe80::1%lo").networks == (("fe80::/64", 1), ("fe80::/48", 4))


def test_addresses_stay_out_of_texts() -> None:
    """A client's repr, as a log might hold it, names no address."""
    assert "192" not in repr(of("192.0.2.7"))


def test_a_peer_that_is_no_address_is_a_stranger() -> None:
    """A name where an address should be is neither trusted nor an error."""
    client = of("testclient", xff="203.0.113.9")
    assert client == ClientAddress(LOCAL, ((LOCAL, 1),), untrusted_forwarding=True)


ADDRESSES = st.ip_addresses().map(str)
STRANGERS = ADDRESSES.filter(
    lambda text: (
        all(ip_address(text) not in network for network in TRUSTED)
        and getattr(ip_address(text), "ipv4_mapped", None) is None
    )
)
TEXT = st.text(st.characters(exclude_characters="\r\n"), max_size=40)
JUNK = st.one_of(TEXT, st.text(alphabet='fFoOrR=;,:"[]\\ \t.0123456789abcdef%_-', max_size=60))


@given(peer=st.one_of(ADDRESSES, st.just(""), JUNK), forwarded=st.none() | JUNK, xff=st.none() | JUNK)
def test_it_never_raises(peer: str, forwarded: str | None, xff: str | None) -> None:
    """Whatever the peer and the headers are there is a client with at least one window."""
    client = of(peer, forwarded=forwarded, xff=xff)
    assert client.networks
    assert all(times in {1, 4} for _, times in client.networks)


@given(left=JUNK, stranger=STRANGERS)
def test_a_client_cannot_name_itself(left: str, stranger: str) -> None:
    """Whatever a client puts into the headers, the address that the trusted proxy appended is the one that counts."""
    assert of(PROXY, xff=f"{left}, {stranger}").address == stranger
    node = f'"[{stranger}]"' if ":" in stranger else stranger
    assert of(PROXY, forwarded=f"{left}, for={node}").address == stranger


@given(peer=STRANGERS, forwarded=JUNK, xff=JUNK)
def test_a_stranger_s_headers_change_nothing(peer: str, forwarded: str, xff: str) -> None:
    """An untrusted peer counts for itself with any headers."""
    assert of(peer, forwarded=forwarded, xff=xff).networks == of(peer).networks
