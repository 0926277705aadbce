from __future__ import annotations

from base64 import b64encode
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from actors.authentication import Credentials
from actors.domain.errors import InvalidCredentials
from service.http.client import LOCAL, ClientAddress, basic_credentials, client_address
from service.http.schemas import controls
from service.setting_values import Trusted

TRUSTED = tuple(ip_network(text) for text in ("10.0.0.0/8", "fd00::/8"))
PROXIES = Trusted(TRUSTED, unix=True)
PROXY = "10.0.0.1"


def of(peer: str, *, forwarded: str | None = None, xff: str | None = None) -> ClientAddress:
    """Return the client of a request with these headers, where 10/8 and fd00::/8 are trusted."""
    headers = Headers()
    if forwarded is not None:
        headers.add("Forwarded", forwarded)
    if xff is not None:
        headers.add("X-Forwarded-For", xff)
    return client_address(peer, headers, PROXIES)


OTHER = "203.0.113.9"
PEERS = [
    # the peer, X-Forwarded-For, whom we trust, the client, and whether a header was not believed
    ("192.0.2.7", None, PROXIES, "192.0.2.7", False),
    ("192.0.2.7", OTHER, PROXIES, "192.0.2.7", True),
    ("127.0.0.1", OTHER, Trusted(), "127.0.0.1", True),  # by default nobody is believed
    (PROXY, None, PROXIES, PROXY, False),
    ("", f"198.51.100.1, {OTHER}", PROXIES, OTHER, False),  # the peer at the other end of a Unix socket
    ("", None, PROXIES, LOCAL, False),
    ("", OTHER, Trusted(TRUSTED), LOCAL, True),
    ("testclient", OTHER, PROXIES, LOCAL, True),  # what is no address is not trusted
]


@pytest.mark.parametrize(("peer", "xff", "trusted", "address", "noticed"), PEERS)
def test_only_a_trusted_peer_speaks_for_others(
    peer: str, xff: str | None, trusted: Trusted, address: str, *, noticed: bool
) -> None:
    """The headers of any other change nothing, and are noticed."""
    client = client_address(peer, Headers({"X-Forwarded-For": xff} if xff else {}), trusted)
    assert client == ClientAddress(((address, 1),), untrusted_forwarding=noticed)


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
    assert of(PROXY, xff=entries).networks == of(client).networks


@pytest.mark.parametrize(
    "junk",
    ["unknown", "_hidden", "example.com", "203.0.113", "203.0.113.09", "[203.0.113.8]", "2001:db8::7:99999x", "'", "1"],
)
def test_nothing_left_of_junk_is_believed(junk: str) -> None:
    """An entry that names no address ends the reading at the last good one."""
    assert of(PROXY, xff=f"203.0.113.9, {junk}").networks == of(PROXY).networks
    assert of(PROXY, xff=f"203.0.113.9, {junk}, 10.7.7.7").networks == of("10.7.7.7").networks


@pytest.mark.parametrize(
    ("elements", "client"),
    [
        ("for=203.0.113.9", "203.0.113.9"),
        ('For="203.0.113.9:4711";proto=https;by=10.0.0.1', "203.0.113.9"),
        ('proto=https ; FOR="[2001:db8::7]:_port" , for=10.9.9.9', "2001:db8::7"),
        ('host="a,b";for=203.0.113.9', "203.0.113.9"),
        ("for=198.51.100.1, for=203.0.113.9", "203.0.113.9"),
        ('for="[2001:db8::7]"', "2001:db8::7"),
    ],
)
def test_the_for_of_a_forwarded_element(elements: str, client: str) -> None:
    """RFC 7239's elements, quoted or not, in any order and case."""
    assert of(PROXY, forwarded=elements).networks == of(client).networks


NODELESS = ["for=unknown", "for=_SEVKISEK", "proto=https", "for", "=203.0.113.9", ";", "203.0.113.9"]
BROKEN = ["for=203.0.113.9;for=203.0.113.8", "for=203.0.113.9 for=1.1.1.1", 'for="203.0.113.9', 'for="203.0.113\\.9"']


@pytest.mark.parametrize("element", [*NODELESS, *BROKEN])
def test_a_forwarded_element_without_one_address_ends_the_reading(element: str) -> None:
    """Unknown, hidden, missing, doubled and broken nodes leave the proxy as the client."""
    assert of(PROXY, forwarded=f"for=198.51.100.1, {element}").networks == of(PROXY).networks


@pytest.mark.parametrize("opening", ['for="', 'for="a, for=b', '"', 'for="\\', 'for=x;by="', '",for="'])
def test_an_open_quote_swallows_no_proxy_s_entry(opening: str) -> None:
    """What a client sends to the left of the proxy's own element cannot change how that is read."""
    for own in ("for=203.0.113.9", 'for="203.0.113.9:1"', 'by="x";for="203.0.113.9"'):
        assert of(PROXY, forwarded=f"{opening}, {own}").networks == of("203.0.113.9").networks


def test_a_list_over_several_lines_is_one_list() -> None:
    """Repeated headers are read as one, the last line last."""
    headers = Headers([("X-Forwarded-For", "198.51.100.1"), ("x-forwarded-for", "203.0.113.9, 10.1.1.1")])
    assert client_address(PROXY, headers, PROXIES).networks == of("203.0.113.9").networks


def test_two_headers_that_differ_are_not_believed() -> None:
    """When both headers are there they must name the same client, else the request counts for the proxy."""
    assert of(PROXY, forwarded='for="203.0.113.9:7"', xff="203.0.113.9").networks == of("203.0.113.9").networks
    assert of(PROXY, forwarded="for=203.0.113.9", xff="203.0.113.8").networks == of(PROXY).networks
    assert of(PROXY, forwarded="for=unknown", xff="203.0.113.8").networks == of(PROXY).networks
    assert of(PROXY, forwarded="", xff="203.0.113.8").networks == of(PROXY).networks


def test_ipv6_counts_by_site_and_by_delegation() -> None:
    """IPv6 has a window for its /64 and one of four times the limit for its /48; mapped IPv4 has one."""
    assert of("2001:db8:1:2:3::4").networks == (("2001:db8:1:2::/64", 1), ("2001:db8:1::/48", 4))
    assert of("::ffff:192.0.2.7").networks == (("192.0.2.7", 1),)
    assert of("fe80::1%lo").networks == (("fe80::/64", 1), ("fe80::/48", 4))


def test_addresses_stay_out_of_texts() -> None:
    """A client's repr, as a log might hold it, names no address."""
    assert "192" not in repr(of("192.0.2.7"))


ADDRESSES = st.ip_addresses().map(str)
UNTRUSTED = ADDRESSES.filter(
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


@given(left=JUNK, client=UNTRUSTED)
def test_a_client_cannot_name_itself(left: str, client: str) -> None:
    """Whatever a client puts into the headers, the address that the trusted proxy appended is the one that counts."""
    assert of(PROXY, xff=f"{left}, {client}").networks == of(client).networks
    node = f'"[{client}]"' if ":" in client else client
    assert of(PROXY, forwarded=f"{left}, for={node}").networks == of(client).networks


@given(peer=UNTRUSTED, forwarded=JUNK, xff=JUNK)
def test_an_untrusted_peer_s_headers_change_nothing(peer: str, forwarded: str, xff: str) -> None:
    """An untrusted peer counts for itself with any headers."""
    assert of(peer, forwarded=forwarded, xff=xff).networks == of(peer).networks


PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=80)


def header(raw: bytes, scheme: str = "Basic") -> str:
    """Return an Authorization header."""
    return f"{scheme} {b64encode(raw).decode()}"


@given(PLAIN.filter(lambda text: ":" not in text), PLAIN)
def test_what_a_client_encodes_is_what_we_read(email: str, password: str) -> None:
    """Address and password come through as typed; the first colon parts them."""
    assert basic_credentials([header(f"{email}:{password}".encode())]) == Credentials(email, password)


@given(st.lists(st.text(max_size=60) | st.binary(max_size=40).map(header), max_size=2))
def test_any_header_is_read_or_refused(values: list[str]) -> None:
    """No Authorization header fails otherwise than as wrong credentials."""
    try:
        found = basic_credentials(values)
    except InvalidCredentials:
        return
    assert not controls(found.email + found.password)


@pytest.mark.parametrize("scheme", ["basic", "BASIC", "Basic  "])
def test_the_scheme_may_be_written_in_any_case(scheme: str) -> None:
    """RFC 7235: the scheme is case-insensitive, one or more blanks follow."""
    assert basic_credentials([header(b"a:b:c", scheme)]) == Credentials("a", "b:c")


BROKEN_BASIC = {
    "none": ["", "Basic", "Bearer YTpi", "Basic ???", header(b"no colon")],
    "no UTF-8": [header(b"a:\xff"), header(b"a:\xed\xa0\x80")],
    "blanks": ["Basic ", "Basic\tYTpi", "Basic YTpi YTpi", "Basic YTp i", "Basic YTpi\n"],
    "no base64": ["Basic YTpi,", "Basic YTpi;x=y", "Basic YTp_", "Basic YTo", "Basic ÿÿÿÿ"],
    "control characters": [header(b"a:b\x00"), header(b"a\x1f:b"), header("a:b\x85".encode())],
}


@pytest.mark.parametrize("value", [value for values in BROKEN_BASIC.values() for value in values])
def test_broken_headers_are_wrong_credentials(value: str) -> None:
    """All are refused alike."""
    for values in ([value], [], [value, value], [header(b"a:b")] * 2):
        with pytest.raises(InvalidCredentials):
            basic_credentials(values)


def test_credentials_are_not_shown() -> None:
    """A repr holds neither the address nor the password."""
    assert "secret" not in repr(basic_credentials([header(b"secret@example.com:secret")]))
