"""The operators' token and its guesses, and who needs none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
from werkzeug.datastructures import Headers

from actors.ports import StoreUnavailable
from service.http.client import authorization
from service.http.ops import RULE, from_this_machine
from tests.fakes.asgi import Answer, Pairs, call
from tests.fakes.http_service import Telling

if TYPE_CHECKING:
    from quart import Quart
    from trio.testing import MockClock

TOKEN = "the-operators'-token"
HTML = (b"accept", b"text/html")
GUARDED = ["/metrics", "/api/v1/metrics", "/dev/mail", "/dev/mail/x"]
GUESSER, SCRAPER = "192.0.2.7", "192.0.2.8"
ELSEWHERE = {"client": (GUESSER, 5)}


@pytest.fixture
def service() -> Telling:
    """Return what the application talks to."""
    return Telling()


@pytest.fixture
def app(service: Telling) -> Quart:
    """Return the application with the operators' token set."""
    return service.app(ops_token=TOKEN)


@pytest.mark.parametrize(
    ("values", "token"),
    [
        (["Bearer token"], "token"),
        (["bearer  token2"], "token2"),
        (["Bearer t\u00f6ken"], "t\u00f6ken"),
        (["Bearer a=b=="], "a=b=="),
        (["Bearer "], ""),
        (["Bearer"], ""),
        (["Basic token"], ""),
        (["Bearer token", "Bearer token"], ""),
        ([], ""),
    ],
)
def test_a_token_comes_in_one_header_of_the_bearer_scheme(values: list[str], token: str) -> None:
    """Anything else carries none."""
    assert authorization("bearer", values) == token


@pytest.mark.parametrize("peer", ["127.9.8.7", "::1", "::ffff:127.0.0.1"])
@pytest.mark.parametrize("name", ["LOCALHOST:80", "localhost.", "[::1]:80", "[::1]"])
def test_a_loopback_peer_that_asks_for_a_loopback_name_is_this_machine(peer: str, name: str) -> None:
    """Unless a header shows that a proxy stands between, or there are two hosts."""
    assert from_this_machine(peer, Headers([("Host", name)]))
    for other in ("X-Forwarded-For", "x-forwarded-proto", "Forwarded", "X-Real-IP", "Via", "Host"):
        assert not from_this_machine(peer, Headers([("Host", name), (other, "127.0.0.1")]))
    for others in ("", "evil.example.com", "localhost.evil.com", "10.0.0.1", "[::2]", "127.0.0.1@evil"):
        assert not from_this_machine(peer, Headers([("Host", others)]))
    for remote in ("192.0.2.7", "2001:db8::1", "", "localhost", "::ffff:192.0.2.7"):
        assert not from_this_machine(remote, Headers([("Host", name)]))


async def bear(app: Quart, token: str = TOKEN, path: str = "/metrics", client: str = GUESSER) -> Answer:
    """Send a token."""
    return await call(app, "GET", path, [(b"authorization", b"Bearer " + token.encode())], client=(client, 5))


async def guess(app: Quart, times: int = RULE.limit, client: str = GUESSER) -> list[int]:
    """Send wrong tokens and return the answers' statuses."""
    return [(await bear(app, f"guess-{number}", client=client)).status for number in range(times)]


async def test_a_client_that_guesses_is_refused_on_every_path(app: Quart, autojump_clock: MockClock) -> None:
    """After ten wrong tokens a client gets 429 with the wait, whatever it asks for; waiting that long is enough."""
    assert await guess(app) == [401] * RULE.limit
    for path in GUARDED:
        refused = await bear(app, "another", path)
        assert (refused.status, refused.code) == (429, "RateLimitExceeded")
        assert 0 < int(refused.headers["retry-after"]) <= RULE.seconds + 1
        assert refused.headers["ratelimit-policy"] == f'"ops-token";q={RULE.limit};w={RULE.seconds}'
    await trio.sleep(int(refused.headers["retry-after"]))
    assert (await bear(app, "another")).status == 401


async def test_a_full_window_does_not_say_which_token_is_the_right_one(app: Quart) -> None:
    """The right one gets the very answer of a wrong one, and the same work is done for it."""
    await guess(app)
    right, wrong = await bear(app), await bear(app, "wrong")
    assert (right.status, right.body) == (wrong.status, wrong.body)
    assert right.headers.keys() == wrong.headers.keys()


async def test_the_right_token_is_never_counted(app: Quart, service: Telling) -> None:
    """A scraper may come as often as it likes, from everywhere where nobody guesses."""
    assert {(await bear(app)).status for _ in range(5 * RULE.limit)} == {200}
    assert not any(asked.count for asked in service.limiter.asked)
    await guess(app)
    assert (await bear(app, client=SCRAPER)).status == 200


async def test_guesses_at_once_are_no_more_than_guesses_in_a_row(app: Quart) -> None:
    """Of a hundred that come together ten learn that they are wrong."""
    statuses: list[int] = []

    async def one(number: int) -> None:
        statuses.append((await bear(app, f"guess-{number}")).status)

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(one, number)
    assert sorted(statuses) == [401] * RULE.limit + [429] * (100 - RULE.limit)


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"Basic YTpi")], [(b"authorization", b"Bearer x")] * 2])
async def test_what_cannot_be_the_token_is_no_guess(app: Quart, service: Telling, headers: Pairs) -> None:
    """Without one Bearer token there is nothing to compare and nothing to count: always a 401."""
    answers = [await call(app, "GET", "/metrics", headers, **ELSEWHERE) for _ in range(2 * RULE.limit)]
    assert {answer.status for answer in answers} == {401}
    assert service.limiter.asked == []


async def test_addresses_of_one_subnet_share_a_window(app: Quart) -> None:
    """IPv6 counts by /64, and four of those fill their /48."""
    for subnet in range(4):
        assert await guess(app, client=f"2001:db8:1:{subnet}::1") == [401] * RULE.limit
        assert (await bear(app, client=f"2001:db8:1:{subnet}::2")).status == 429
    assert (await bear(app, client="2001:db8:1:ffff::1")).status == 429
    assert (await bear(app, client="2001:db8:2::1")).status == 200


async def test_without_any_store_only_the_right_token_is_answered(app: Quart, service: Telling) -> None:
    """An operator sees what is going on; a wrong token is refused, uncounted as long as the outage lasts."""
    service.limiter.rate_limits.away = StoreUnavailable()
    assert (await bear(app)).status == 200
    wrong = await bear(app, "guess")
    assert (wrong.status, wrong.code) == (503, "StoreUnavailable")


async def test_without_a_token_only_this_machine_is_let_in(service: Telling) -> None:
    """What programs read is read by operators alone, on this machine; the page itself holds no figures."""
    app = service.app()
    for path in GUARDED:
        refused = await call(app, "GET", path, [HTML], **ELSEWHERE)
        assert (refused.status, refused.code) == (403, "OpsTokenRequired")
    assert (await call(app, "GET", "/metrics")).status == 200
    assert (await call(app, "GET", "/ops", [HTML], **ELSEWHERE)).status == 200
