from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from werkzeug.datastructures import Headers

from actors.ports import StoreUnavailable
from service.http.ops import REMEMBERED, RULE, bearer, from_this_machine
from tests.fakes.asgi import Answer, call
from tests.fakes.http_service import Telling

if TYPE_CHECKING:
    from quart import Quart
    from trio.testing import MockClock

TOKEN = "the-operators'-token"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
GUARDED = [
    "/metrics",
    "/api/v1/metrics",
    "/dev/mail",
    "/dev/mail/x",
    "/api/v1/ops/mails",
    "/api/v1/ops/mails/x",
    "/ops",
]
GUESSER, SCRAPER = "192.0.2.7", "192.0.2.8"


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
    """A proxy on this machine speaks for others."""
    assert not from_this_machine("127.0.0.1", Headers([("Host", "localhost"), (name, "127.0.0.1")]))


def test_two_hosts_are_none() -> None:
    """Nobody can say which of two Host headers was meant."""
    assert not from_this_machine("127.0.0.1", Headers([("Host", "localhost"), ("Host", "localhost")]))
    assert not from_this_machine("127.0.0.1", Headers())


@pytest.fixture
def service() -> Telling:
    """Return what the application talks to."""
    return Telling()


@pytest.fixture
def app(service: Telling) -> Quart:
    """Return the application with the operators' token set."""
    return service.app(ops_token=TOKEN)


async def bear(app: Quart, token: str = TOKEN, path: str = "/metrics", client: str = GUESSER) -> Answer:
    """Send a token."""
    return await call(app, "GET", path, [(b"authorization", b"Bearer " + token.encode())], client=(client, 5))


async def guess(app: Quart, times: int = RULE.limit, client: str = GUESSER) -> list[int]:
    """Send wrong tokens and return the answers' statuses."""
    return [(await bear(app, f"guess-{number}", client=client)).status for number in range(times)]


@pytest.mark.parametrize("path", GUARDED)
async def test_who_guesses_is_turned_away_on_every_path(app: Quart, path: str, autojump_clock: MockClock) -> None:
    """After ten wrong tokens a client hears 429 with the wait, whatever it asks for; waiting that long is enough."""
    assert autojump_clock is not None
    assert await guess(app) == [401] * RULE.limit
    refused = await bear(app, "another", path)
    assert (refused.status, refused.code) == (429, "RateLimitExceeded")
    assert 0 < int(refused.headers["retry-after"]) <= RULE.seconds + 1
    assert refused.headers["ratelimit-policy"] == f'"ops-token";q={RULE.limit};w={RULE.seconds}'
    await trio.sleep(int(refused.headers["retry-after"]))
    assert (await bear(app, "another", path)).status == 401


async def test_a_full_window_does_not_say_which_token_is_the_right_one(app: Quart) -> None:
    """The right one gets the very answer of a wrong one, and the same work is done for it."""
    await guess(app)
    right, wrong = await bear(app), await bear(app, "wrong")
    assert (right.status, right.body) == (wrong.status, wrong.body)
    assert right.headers.keys() == wrong.headers.keys()


async def test_the_right_token_is_never_counted(app: Quart, service: Telling) -> None:
    """A scraper may come as often as it likes, from wherever nobody guesses."""
    assert {(await bear(app)).status for _ in range(5 * RULE.limit)} == {200}
    assert not any(asked.count for asked in service.limiter.asked)
    await guess(app)
    assert (await bear(app, client=SCRAPER)).status == 200


async def test_guesses_at_once_are_no_more_than_guesses_in_a_row(app: Quart) -> None:
    """Of a hundred that come together ten hear that they are wrong."""
    statuses: list[int] = []

    async def one(number: int) -> None:
        statuses.append((await bear(app, f"guess-{number}")).status)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number)
    assert sorted(statuses) == [401] * RULE.limit + [429] * (100 - RULE.limit)


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic YTpi")], [(b"authorization", b"Bearer x")] * 2])
async def test_what_cannot_be_the_token_is_no_guess(app: Quart, service: Telling, headers: Any) -> None:  # noqa: ANN401 - pairs
    """Without one Bearer token there is nothing to compare and nothing to count: always a 401."""
    answers = [await call(app, "GET", "/metrics", headers, client=(GUESSER, 5)) for _ in range(2 * RULE.limit)]
    assert {answer.status for answer in answers} == {401}
    assert service.limiter.asked == []


async def test_the_form_and_the_header_share_one_window(app: Quart) -> None:
    """Who is turned away at one door need not try the other."""
    await guess(app)
    for token in (TOKEN, "wrong"):
        answer = await call(app, "POST", "/ops/session", [FORM], f"token={token}".encode(), client=(GUESSER, 5))
        assert (answer.status, answer.code) == (429, "RateLimitExceeded")
        assert "set-cookie" not in answer.headers


async def test_addresses_of_one_subnet_share_a_window(app: Quart) -> None:
    """IPv6 counts by /64, and four of those fill their /48."""
    for subnet in range(4):
        assert await guess(app, client=f"2001:db8:1:{subnet}::1") == [401] * RULE.limit
        assert (await bear(app, client=f"2001:db8:1:{subnet}::2")).status == 429
    assert (await bear(app, client="2001:db8:1:ffff::1")).status == 429
    assert (await bear(app, client="2001:db8:2::1")).status == 200


async def test_without_any_store_the_right_token_opens_and_guesses_are_counted(
    app: Quart, service: Telling, autojump_clock: MockClock
) -> None:
    """In an outage of both stores the process counts for itself, by the same rule, for each client."""
    assert autojump_clock is not None
    service.limiter.rate_limits.away = StoreUnavailable()
    assert (await bear(app)).status == 200
    assert await guess(app, RULE.limit + 1) == [401] * RULE.limit + [429]
    assert ((await bear(app)).status, (await bear(app, client=SCRAPER)).status) == (429, 200)
    await trio.sleep(int((await bear(app)).headers["retry-after"]))
    assert (await bear(app)).status == 200


async def test_what_a_process_remembers_in_an_outage_is_bounded(app: Quart, service: Telling) -> None:
    """Guesses from ever new addresses push out the oldest, not the process."""
    service.limiter.rate_limits.away = StoreUnavailable()
    await guess(app)
    for number in range(REMEMBERED):
        await guess(app, 1, f"10.0.{number // 250}.{number % 250}")
    assert (await bear(app)).status == 200
