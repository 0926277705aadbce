"""Whose request it is, and what a page of another origin may see, at the socket."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.faults.hostile.conftest import PROXY, SHOP
from tests.faults.hostile.raw import ask, get, register

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

OPS = ["/metrics", "/api/v1/metrics", "/dev/mail"]
PEOPLE = count(1)
FORWARDED = {
    "IPv4": ["192.0.2.1", "8.8.8.8, 192.0.2.1", "192.0.2.1:443"],
    "mapped IPv4": ["::ffff:192.0.2.11", "192.0.2.11", "[::ffff:192.0.2.11]:9"],
    "through trusted proxies": ["192.0.2.21, 10.1.2.3", "192.0.2.21, fd00::1, 10.9.9.9", "junk, 192.0.2.21"],
    "one /64": ["2001:db8:1:1::1", "[2001:db8:1:1::2]:443", "2001:db8:1:1:ffff::3"],
}


def registered(service: Instance, source: str, *headers: str) -> int:
    """Register a new person and return the answer's status."""
    return ask(service.port, register(f"p{next(PEOPLE)}@example.com", *headers), source).status


@pytest.mark.parametrize("origin", [SHOP, "http://localhost:3000"])
def test_a_listed_origin_may_call(service: Instance, origin: str) -> None:
    """The preflight names it, the methods and our headers; the answer may be read; credentials mode stays off."""
    wish = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type")
    preflight = ask(service.port, get("/api/v1/users/activate", f"Origin: {origin}", *wish, method="OPTIONS"))
    assert preflight.status == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]
    allowed = preflight.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("authorization", "content-type", "idempotency-key"))
    answer = ask(service.port, get("/api/v1/users/me", f"Origin: {origin}"))
    assert answer.error == "InvalidCredentials"
    for seen in (preflight, answer):
        assert (seen.headers["access-control-allow-origin"], seen.headers["vary"]) == (origin, "Origin")
        assert "access-control-allow-credentials" not in seen.headers


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com", f"{SHOP}.evil.com", f"{SHOP}:8443", "http://shop.example.com", SHOP.upper(),
        "null", f"{SHOP}/", "*", "", f"{SHOP}, {SHOP}",
    ],
)  # fmt: skip
def test_another_origin_may_not(service: Instance, origin: str) -> None:
    """Exact origins: not a scheme, a port, a suffix or a letter more."""
    for method in ("OPTIONS", "GET"):
        answer = ask(service.port, get("/livez", f"Origin: {origin}", method=method))
        assert answer.status == 200
        assert [name for name in answer.headers if name.startswith("access-control-")] == []


@pytest.mark.parametrize("path", OPS)
def test_operators_pages_are_for_this_machine_itself(service: Instance, path: str) -> None:
    """Not for a page that rebinds its name nor a proxy here, whatever it says; an absolute target changes nothing."""
    for host in ("evil.example.com", "localhost.evil.com", "10.0.0.1", "127.0.0.1.evil.com", "0x7f.1"):
        assert ask(service.port, get(path, host=f"{host}:{service.port}")).error == "OpsTokenRequired"
    for name in ("X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "x-forwarded-foo"):
        assert ask(service.port, get(path, f"{name}: 127.0.0.1")).error == "OpsTokenRequired"
    for host in ("localhost", f"127.0.0.1:{service.port}", "[::1]", "LOCALHOST"):
        assert ask(service.port, get(path, host=host)).status == 200
    assert ask(service.port, get(f"http://evil.example.com{path}", host="localhost")).status == 200


def test_a_client_counts_by_its_own_address(service: Instance) -> None:
    """The third registration in an hour is refused, whatever an untrusted peer forwards; another address is not."""
    headers = [(), ("X-Forwarded-For: 203.0.113.1",), ("Forwarded: for=203.0.113.9",)]
    assert [registered(service, "127.0.1.1", *header) for header in headers] == [201, 201, 429]
    assert registered(service, "127.0.1.2") == 201


@pytest.mark.parametrize("forms", FORWARDED.values(), ids=FORWARDED)
def test_behind_the_proxy_a_client_counts_by_what_the_proxy_says(service: Instance, forms: list[str]) -> None:
    """The right-most untrusted address, in every spelling, is one client."""
    assert [registered(service, PROXY, f"X-Forwarded-For: {form}") for form in forms] == [201, 201, 429]


def test_a_delegation_of_many_subnets_is_bounded_too(service: Instance) -> None:
    """A /48 has four times the limit of a /64: the ninth registration of nine subnets is refused."""
    subnets = [f"X-Forwarded-For: 2001:db8:77:{n}::1" for n in range(1, 10)]
    assert [registered(service, PROXY, header) for header in subnets] == [201] * 8 + [429]


def test_headers_that_contradict_each_other_count_for_the_proxy(service: Instance) -> None:
    """A client that forges the header that the proxy does not write wins no window of its own choice."""
    forged = [(f"X-Forwarded-For: 198.51.100.{n}", "Forwarded: for=198.51.100.99") for n in range(3)]
    assert [registered(service, PROXY, *pair) for pair in forged] == [201, 201, 429]
