"""What anybody can send, generated, and what the four readers may make of it: a value or a refusal."""

from __future__ import annotations

import json
from base64 import b64encode
from contextlib import suppress
from ipaddress import ip_network
from typing import TYPE_CHECKING, Any, Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from werkzeug.datastructures import Headers

from actors.domain.errors import InvalidCredentials, InvalidEmail
from service.http.client import basic_credentials, client_address
from service.http.json_body import check_media, checked, parse
from service.http.problems import RequestRefused
from service.http.schemas import ActivateRequest, NothingRequest, RegisterRequest, controls
from service.passwords import MOST_BYTES, EmailAddresses
from service.setting_values import Trusted

if TYPE_CHECKING:
    from collections.abc import Callable

TRUSTED: Final = Trusted(tuple(ip_network(text) for text in ("127.0.0.0/8", "10.0.0.0/8", "fd00::/8")))
MODELS: Final = (RegisterRequest, ActivateRequest, NothingRequest)
LATIN: Final = st.text(st.characters(max_codepoint=255), max_size=60)  # what a header can hold
SPICE: Final = st.sampled_from(
    ["\0", "\r\n", "\t", ":", "@", '"', "\\", "[", "]", ",", ";", "=", "%", "\x85", "\u202e", "\ud800"]
)

ENCODED: Final = st.binary(max_size=60).map(lambda raw: b64encode(raw).decode())
BASIC: Final = st.builds(
    lambda scheme, blanks, text, tail: scheme + blanks + text + tail,
    st.sampled_from(["Basic", "basic", "BASIC", "Bearer", "Basi", ""]),
    st.sampled_from([" ", "  ", "\t", "", "\xa0"]),
    ENCODED | LATIN | st.text(max_size=30).map(lambda text: b64encode(f"{text}:x".encode(errors="replace")).decode()),
    st.sampled_from(["", "=", "==", " ", "\n", ",", "\0"]),
)

IPS: Final = st.ip_addresses().map(str)
NODE: Final = (
    IPS
    | IPS.map(lambda ip: f"[{ip}]")
    | IPS.map(lambda ip: f"{ip}:80")
    | IPS.map(lambda ip: f'"[{ip}]:_x"')
    | IPS.map(lambda ip: f"::ffff:{ip}")
    | st.sampled_from(["unknown", "_hidden", "", '"', "fe80::1%eth0", "1" * 500])
    | LATIN
)
ELEMENT: Final = NODE | NODE.map(lambda node: f"for={node}") | NODE.map(lambda node: f"For={node};proto=https;by=_x")
LIST: Final = st.lists(ELEMENT, max_size=6).map(",".join)

LEAF: Final = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=30) | SPICE
JSON: Final = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
FIELDS: Final = st.dictionaries(
    st.sampled_from(["email", "password", "locale", "code", "activation_code", "x"]), JSON, max_size=5
)
BODY: Final = (
    st.binary(max_size=200)
    | FIELDS.map(lambda value: json.dumps(value).encode())
    | JSON.map(lambda value: json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
    | st.builds(
        lambda depth, start: start * depth, st.integers(0, 4000), st.sampled_from([b"[", b'{"a":', b'["', b"[[{"])
    )
    | st.builds(lambda value, cut: json.dumps(value).encode()[:cut], FIELDS, st.integers(0, 60))
)

WORD: Final = (
    st.text(max_size=70)
    | LATIN
    | st.sampled_from(["a", "o'neil+tag", "a..b", '"q"', "xn--", "xn--a", "例え", "ß", "\u0661"])
)
ADDRESS: Final = (
    st.text(max_size=80)
    | st.builds(
        lambda local, at, labels: local + at + ".".join(labels),
        WORD,
        st.sampled_from(["@", "@@", "", "\uff20"]),
        st.lists(WORD, max_size=5),
    )
    | st.emails()
    | st.builds(lambda left, spice, right: left + spice + right, st.emails(), SPICE, st.text(max_size=10))
)


def basic_header(values: list[str]) -> None:
    """Read Authorization headers: credentials without control characters, or the refusal of wrong ones."""
    try:
        who = basic_credentials(values)
    except InvalidCredentials:
        return
    assert not controls(who.email + who.password)


def forwarded_headers(peer: str, forwarded: list[str], x_forwarded_for: list[str]) -> None:
    """Read forwarded headers: always a client, and the peer itself where it is not trusted."""
    headers = Headers()
    for name, values in (("Forwarded", forwarded), ("X-Forwarded-For", x_forwarded_for)):
        for value in values:
            headers.add(name, value.replace("\r", "").replace("\n", ""))
    client = client_address(peer, headers, TRUSTED)
    assert 1 <= len(client.networks) <= 2
    if peer.startswith("192."):
        assert client.address == peer


def json_body(raw: bytes, types: list[str], model: int) -> None:
    """Read a body: a model, or a refusal that repeats none of it."""
    with suppress(RequestRefused):
        check_media(types, [])
    try:
        checked(MODELS[model], parse(raw))
    except RequestRefused:
        return


def address(text: str) -> None:
    """Read an address: one that reads the same under its own key, or a refusal."""
    reader = EmailAddresses()
    try:
        read = reader.read(text)
    except InvalidEmail:
        return
    assert read.typed == text
    assert len(read.key) <= MOST_BYTES
    assert reader.read(read.key).key == read.key


READERS: Final[dict[str, tuple[Callable[..., None], tuple[st.SearchStrategy[Any], ...]]]] = {
    "Basic header": (basic_header, (st.lists(BASIC, max_size=2),)),
    "forwarded headers": (
        forwarded_headers,
        (
            IPS | st.sampled_from(["", "127.0.0.1", "192.0.2.7", "::ffff:127.0.0.1"]),
            st.lists(LIST, max_size=3),
            st.lists(LIST, max_size=3),
        ),
    ),
    "JSON gate": (json_body, (BODY, st.lists(LATIN | st.just("application/json"), max_size=2), st.integers(0, 2))),
    "address": (address, (ADDRESS,)),
}


def fuzz(name: str, inputs: int, start: int) -> int:
    """Give so many inputs to one of the readers and return how many it has read; raises what it should not have."""
    read, strategies = READERS[name]
    count = 0

    @seed(start)
    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.tuples(*strategies))
    def one(values: tuple[object, ...]) -> None:
        nonlocal count
        count += 1
        read(*values)

    one()
    return count
