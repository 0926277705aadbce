from __future__ import annotations

import pytest
from werkzeug.datastructures import Headers

from service.http.ops_access import bearer, from_this_machine


@pytest.mark.parametrize(
    ("values", "token"),
    [
        (["Bearer token"], "token"),
        (["bearer  token2"], "token2"),
        (["Bearer t\u00f6ken"], "t\u00f6ken"),
        (["Bearer "], None),
        (["Bearer two words"], None),
        (["Basic token"], None),
        (["Bearer token", "Bearer token"], None),
        ([], None),
    ],
)
def test_a_token_comes_in_one_header_of_the_bearer_scheme(values: list[str], token: str | None) -> None:
    """Anything else carries none."""
    assert bearer(Headers([("Authorization", value) for value in values])) == token


@pytest.mark.parametrize("client", ["127.0.0.1", "127.9.8.7", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost.", "127.0.0.1:8000", "[::1]:8000", "[::1]"])
def test_this_machine_passes(client: str, host: str) -> None:
    """A loopback peer that asks for a loopback name is this machine."""
    assert from_this_machine(client, Headers({"Host": host}))


@pytest.mark.parametrize("host", ["", "evil.example.com", "localhost.evil.com", "10.0.0.1", "[::2]", "127.0.0.1@evil"])
def test_another_name_is_another_machine(host: str) -> None:
    """A page that reaches us by a name of its own (DNS rebinding) sees nothing."""
    assert not from_this_machine("127.0.0.1", Headers({"Host": host}))


@pytest.mark.parametrize("client", ["192.0.2.7", "2001:db8::1", "", "localhost", "::ffff:192.0.2.7"])
def test_another_peer_is_another_machine(client: str) -> None:
    """The peer must be on loopback; a Unix socket is a proxy's."""
    assert not from_this_machine(client, Headers({"Host": "localhost"}))


@pytest.mark.parametrize("name", ["X-Forwarded-For", "x-forwarded-proto", "Forwarded", "X-Real-IP", "Via"])
def test_what_was_forwarded_is_from_another_machine(name: str) -> None:
    """A proxy on this machine speaks for strangers."""
    assert not from_this_machine("127.0.0.1", Headers([("Host", "localhost"), (name, "127.0.0.1")]))


def test_two_hosts_are_none() -> None:
    """Nobody can say which of two Host headers was meant."""
    assert not from_this_machine("127.0.0.1", Headers([("Host", "localhost"), ("Host", "localhost")]))
    assert not from_this_machine("127.0.0.1", Headers())
