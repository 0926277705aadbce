"""Whose request it is, and what a page of another origin may see, at the socket."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.faults.hostile.conftest import LOOPS
from tests.faults.hostile.raw import Answer, ask, get, register

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance

SHOP = "https://shop.example.com"
TOKEN = "an operator's token"
PROXY, STRANGER = "127.0.0.9", "127.0.7.7"
SETTINGS = {
    "CORS_ORIGINS": f"{SHOP},http://localhost:3000",
    "TRUSTED_PROXIES": f"{PROXY}/32,10.0.0.0/8,fd00::/8",
    "REGISTER_LIMIT": "2/hour",
}
OPS = ["/metrics", "/api/v1/metrics", "/dev/mail"]
PEOPLE = count(1)


@pytest.fixture(scope="module", params=LOOPS)
def gate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Run a service behind a proxy, two registrations an hour, without a token."""
    with running(tmp_path_factory.mktemp("o"), request.param, SETTINGS) as instance:
        yield instance


def registered(gate: Instance, source: str, *headers: str) -> int:
    """Register a new person and return the answer's status."""
    return ask(gate.port, register(f"p{next(PEOPLE)}@example.com", *headers), source).status


def cors(answer: Answer) -> dict[str, str]:
    """Return what browsers look at."""
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}


@pytest.mark.parametrize("origin", [SHOP, "http://localhost:3000"])
def test_a_listed_origin_may_call(gate: Instance, origin: str) -> None:
    """The preflight names it, the methods and our headers; the answer may be read; credentials mode stays off."""
    wish = ("Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization, content-type")
    preflight = ask(gate.port, get("/api/v1/users/activate", f"Origin: {origin}", *wish, method="OPTIONS"))
    assert preflight.status == 200
    assert cors(preflight)["access-control-allow-origin"] == origin
    assert "POST" in cors(preflight)["access-control-allow-methods"]
    assert {"authorization", "content-type", "idempotency-key"} <= {
        name.strip().lower() for name in cors(preflight)["access-control-allow-headers"].split(",")
    }
    answer = ask(gate.port, get("/api/v1/users/me", f"Origin: {origin}"))
    assert answer.error == "InvalidCredentials"
    assert cors(answer)["access-control-allow-origin"] == origin
    for seen in (preflight, answer):
        assert seen.headers["vary"] == "Origin"
        assert "access-control-allow-credentials" not in seen.headers
        assert "*" not in cors(seen).values()


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example.com", f"{SHOP}.evil.com", "https://shop.example.com:8443", "http://shop.example.com",
        "HTTPS://SHOP.EXAMPLE.COM", "null", f"{SHOP}/", "*", "", f"{SHOP}, {SHOP}",
    ],
)  # fmt: skip
def test_another_origin_may_not(gate: Instance, origin: str) -> None:
    """Exact origins: not a scheme, a port, a suffix or a letter more."""
    for method in ("OPTIONS", "GET"):
        answer = ask(gate.port, get("/livez", f"Origin: {origin}", method=method))
        assert answer.status == 200
        assert cors(answer) == {}


@pytest.mark.parametrize("path", OPS)
@pytest.mark.parametrize("host", ["evil.example.com", "localhost.evil.com", "10.0.0.1", "127.0.0.1.evil.com", "0x7f.1"])
def test_a_page_that_rebinds_its_name_sees_nothing_of_the_operators(gate: Instance, path: str, host: str) -> None:
    """DNS rebinding: the peer is this machine's browser, but the Host is another name."""
    assert ask(gate.port, get(path, host=f"{host}:{gate.port}")).error == "OpsTokenRequired"


@pytest.mark.parametrize("path", OPS)
@pytest.mark.parametrize(
    "name", ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "x-forwarded-foo"]
)
def test_a_proxy_on_this_machine_is_not_this_machine(gate: Instance, path: str, name: str) -> None:
    """What a proxy passes on comes from anywhere, also when it says that it comes from here."""
    assert ask(gate.port, get(path, f"{name}: 127.0.0.1")).error == "OpsTokenRequired"


@pytest.mark.parametrize("path", OPS)
def test_this_machine_itself_sees_it(gate: Instance, path: str) -> None:
    """By every loopback name, also through an absolute target that names another host."""
    for host in ("localhost", f"127.0.0.1:{gate.port}", "[::1]", "LOCALHOST"):
        assert ask(gate.port, get(path, host=host)).status == 200
    assert ask(gate.port, get(f"http://evil.example.com{path}", host="localhost")).status == 200


def test_a_client_counts_by_its_own_address(gate: Instance) -> None:
    """The third registration within the hour is refused, and another address is not."""
    assert [registered(gate, "127.0.1.1") for _ in range(3)] == [201, 201, 429]
    assert registered(gate, "127.0.1.2") == 201


def test_a_stranger_cannot_speak_for_others(gate: Instance) -> None:
    """Forwarded headers of an untrusted peer change nothing, and are noted."""
    headers = [f"X-Forwarded-For: 203.0.113.{n}" for n in range(2)] + ["Forwarded: for=203.0.113.9"]
    assert [registered(gate, STRANGER, header) for header in headers] == [201, 201, 429]
    health = [json.loads(ask(gate.port, get("/api/v1/health")).body) for _ in range(20)]
    assert any("TRUSTED_PROXIES" in note for one in health for note in one["notes"])


@pytest.mark.parametrize(
    ("forms", "other"),
    [
        (["X-Forwarded-For: 192.0.2.1", "X-Forwarded-For: 8.8.8.8, 192.0.2.1", "Forwarded: for=192.0.2.1"],
         "192.0.2.2"),
        (["X-Forwarded-For: ::ffff:192.0.2.11", "X-Forwarded-For: 192.0.2.11:443",
          'Forwarded: for="[::ffff:c000:20b]:9"'],
         "192.0.2.12"),
        (["X-Forwarded-For: 192.0.2.21, 10.1.2.3", "X-Forwarded-For: 192.0.2.21, fd00::1, 10.9.9.9",
          "X-Forwarded-For: junk, 192.0.2.21"], "192.0.2.22"),
        (["X-Forwarded-For: 2001:db8:1:1::1", "X-Forwarded-For: [2001:db8:1:1::2]:443",
          'Forwarded: for="[2001:db8:1:1:ffff::3]"'], "2001:db8:1:2::1"),
    ],
    ids=["IPv4", "IPv4 in other forms", "through trusted proxies", "one /64"],
)  # fmt: skip
def test_behind_the_proxy_a_client_counts_by_what_the_proxy_says(gate: Instance, forms: list[str], other: str) -> None:
    """The right-most untrusted address, in every spelling, is one client; another address is another."""
    assert [registered(gate, PROXY, form) for form in forms] == [201, 201, 429]
    assert registered(gate, PROXY, f"X-Forwarded-For: {other}") == 201


def test_a_delegation_of_many_subnets_is_bounded_too(gate: Instance) -> None:
    """A /48 has four times the limit of a /64: the ninth registration of nine subnets is refused."""
    subnets = [f"X-Forwarded-For: 2001:db8:77:{n}::1" for n in range(1, 10)]
    assert [registered(gate, PROXY, header) for header in subnets] == [201] * 8 + [429]


def test_headers_that_contradict_each_other_count_for_the_proxy(gate: Instance) -> None:
    """A client that forges the header that the proxy does not write wins no window of its own choice."""
    forged = [(f"X-Forwarded-For: 198.51.100.{n}", "Forwarded: for=198.51.100.99") for n in range(3)]
    assert [registered(gate, PROXY, *pair) for pair in forged] == [201, 201, 429]


def test_a_token_opens_and_nothing_else_does(tmp_path_factory: pytest.TempPathFactory) -> None:
    """With a token set, this machine itself needs it, and whoever has it may come through a proxy."""
    with running(tmp_path_factory.mktemp("k"), "uvloop", {"OPS_TOKEN": TOKEN.replace(" ", "-")}) as instance:
        right = f"Authorization: Bearer {TOKEN.replace(' ', '-')}"
        for path in OPS:
            refused = ask(instance.port, get(path))
            assert (refused.status, refused.error) == (401, "OpsTokenRequired")
            assert "Bearer" in refused.headers["www-authenticate"]
            assert ask(instance.port, get(path, f"{right}x")).status == 401
            assert ask(instance.port, get(path, right, right)).status == 401
            assert (
                ask(instance.port, get(path, right, "X-Forwarded-For: 192.0.2.1", host="any.example.com")).status == 200
            )
