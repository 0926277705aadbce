"""The operators' token, its guesses, the session of the page, and the mail queue over HTTP."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
import trio
from werkzeug.datastructures import Headers

from actors.domain.errors import RateLimited
from actors.limits import Client
from actors.ports import StoreUnavailable
from service.http.client import Clients
from service.http.ops import (
    LIFETIME_SECONDS,
    REMEMBERED,
    RULE,
    OpsAccess,
    OpsGuesses,
    OpsSession,
    bearer,
    from_this_machine,
    own_page,
)
from service.settings import Settings
from tests.fakes.asgi import JSON, Answer, Pairs, ask, call
from tests.fakes.http_service import PromptLimiter, ScriptedMail, Telling

if TYPE_CHECKING:
    from quart import Quart
    from trio.testing import MockClock

TOKEN = "the-operators'-token"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
HTML = (b"accept", b"text/html")
MAILS = "/api/v1/ops/mails"
GUARDED = ["/metrics", "/api/v1/metrics", "/dev/mail", "/dev/mail/x", MAILS, f"{MAILS}/x", "/ops", "/ops/events"]
GUESSER, SCRAPER = "192.0.2.7", "192.0.2.8"
ELSEWHERE = {"client": (GUESSER, 5)}
MAIL = ScriptedMail(UUID(int=1))


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


async def test_without_any_store_the_right_token_opens_and_guesses_are_counted(
    app: Quart, service: Telling, autojump_clock: MockClock
) -> None:
    """In an outage of both stores the process counts for itself and for each client."""
    service.limiter.rate_limits.away = StoreUnavailable()
    assert (await bear(app)).status == 200
    assert await guess(app, RULE.limit + 1) == [401] * RULE.limit + [429]
    assert ((await bear(app)).status, (await bear(app, client=SCRAPER)).status) == (429, 200)
    await trio.sleep(int((await bear(app)).headers["retry-after"]))
    assert (await bear(app)).status == 200


async def test_guesses_that_no_store_counts_are_remembered_within_bounds(service: Telling) -> None:
    """So many later ones of others make a guesser forgotten."""
    service.limiter.rate_limits.away = StoreUnavailable()
    guesses, guesser = OpsGuesses(service.limiter), Client((("guesser", 1),))
    for _ in range(RULE.limit):
        await guesses.check(guesser, wrong=True)
    with pytest.raises(RateLimited):
        await guesses.check(guesser, wrong=True)
    for number in range(REMEMBERED):
        await guesses.check(Client(((f"another {number}", 1),)), wrong=True)
    await guesses.check(guesser, wrong=True)


# -- the session of the page ------------------------------------------------------------------------------------------


def cookie_of(value: str) -> Pairs:
    """Return the header that sends a cookie back."""
    return [(b"cookie", value.partition(";")[0].encode())]


async def signed_in(app: Quart, *headers: tuple[bytes, bytes]) -> Answer:
    """Send the form."""
    return await call(app, "POST", "/ops/session", [FORM, *headers], f"token={TOKEN}".encode(), **ELSEWHERE)


async def test_browsers_are_asked_for_the_token_and_programs_refused(app: Quart) -> None:
    """With a token set /ops leads a browser without any to the form; the token itself opens, a wrong one is a 401."""
    browser = await call(app, "GET", "/ops", [HTML], **ELSEWHERE)
    assert (browser.status, browser.headers["location"]) == (303, "/ops/session")
    assert b'name="token"' in (await call(app, "GET", "/ops/session", [HTML], **ELSEWHERE)).body
    for path, headers in (("/ops", []), ("/ops/events", []), ("/ops/events", [HTML])):
        refused = await call(app, "GET", path, headers, **ELSEWHERE)
        assert (refused.status, refused.code) == (401, "OpsTokenRequired")
    for token, status in ((TOKEN, 200), ("other", 401)):
        given = (b"authorization", f"Bearer {token}".encode())
        assert (await call(app, "GET", "/ops", [HTML, given], **ELSEWHERE)).status == status


async def test_without_a_token_only_this_machine_is_let_in(service: Telling) -> None:
    """No sign-in is needed on loopback, and another machine gets nothing, not even a form that works."""
    app = service.app()
    assert (await call(app, "GET", "/ops", [HTML])).status == 200
    assert (await call(app, "GET", "/ops/session", [HTML])).headers["location"] == "/ops"
    for path in GUARDED:
        refused = await call(app, "GET", path, [HTML], **ELSEWHERE)
        assert (refused.status, refused.code) == (403, "OpsTokenRequired")
    answer = await signed_in(app)
    assert (answer.status, "set-cookie" in answer.headers) == (303, False)


async def test_the_right_token_becomes_a_cookie_that_opens_the_pages(app: Quart) -> None:
    """The cookie is for this path, for the browser alone and for no other site; it opens page and feed alone."""
    answer = await signed_in(app)
    cookie = answer.headers["set-cookie"]
    assert (answer.status, answer.headers["location"]) == (303, "/ops")
    assert {"Path=/ops", "HttpOnly", "SameSite=Strict", f"Max-Age={LIFETIME_SECONDS}"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert TOKEN not in cookie
    page = await call(app, "GET", "/ops", [HTML, *cookie_of(cookie)], **ELSEWHERE)
    assert (page.status, page.headers["cache-control"]) == (200, "no-store")
    assert b"Sign out" in page.body
    assert (await call(app, "HEAD", "/ops/events", cookie_of(cookie), **ELSEWHERE)).status == 200
    assert (await call(app, "GET", "/api/v1/metrics", cookie_of(cookie), **ELSEWHERE)).status == 401


async def test_over_https_the_cookie_is_secure(service: Telling) -> None:
    """Browsers then never send it in clear: by PUBLIC_URL, or as a proxy says."""
    by_url = await signed_in(service.app(ops_token=TOKEN, public_url="https://sign-up.example"))
    by_proxy = await signed_in(service.app(ops_token=TOKEN), (b"x-forwarded-proto", b"https"))
    for answer in (by_url, by_proxy):
        assert answer.headers["set-cookie"].endswith("; Secure")


async def test_a_session_ends_with_its_time_its_token_and_the_button(app: Quart) -> None:
    """After eight hours, under another token, or changed in one character, a value is no session."""
    now = [1_700_000_000.0]

    def under(token: str) -> OpsSession:
        settings = Settings.model_validate({"ops_token": token})
        clients = Clients(settings.trusted_proxies, lambda _: None, Counter())
        return OpsSession(settings, OpsAccess(settings, clients, PromptLimiter()), lambda: now[0])

    session = under(TOKEN)
    value = session.value()
    assert session.is_good(value)
    assert not under("another").is_good(value)
    stated, _, mac = value.rpartition(".")
    expiry, _, rest = stated.partition(".")
    forged = (f"{int(expiry) + 1}.{rest}.{mac}", f"{stated}.{mac[:-1]}", f"{stated}.", stated, "", "..", "ü.ü", TOKEN)
    assert not any(session.is_good(each) for each in forged)
    now[0] += LIFETIME_SECONDS
    assert not session.is_good(value)
    assert session.value() != session.value()
    out = await call(app, "POST", "/ops/session/end", [], **ELSEWHERE)
    assert (out.status, out.headers["location"]) == (303, "/ops/session")
    assert {"vestibule_ops=", "Max-Age=0"} <= set(out.headers["set-cookie"].split("; "))


@pytest.mark.parametrize(
    "body", [b"token=wrong", b"token=", b"", b"token=the-operators%27-token&token=x", b"\xff\xfe", b"Token=wrong"]
)
async def test_a_wrong_token_in_the_form_is_one_of_the_guesses(app: Quart, service: Telling, body: bytes) -> None:
    """It is a 401 without a cookie, and counts in the window of the header; a full one refuses the right token too."""
    answer = await call(app, "POST", "/ops/session", [FORM], body, **ELSEWHERE)
    assert (answer.status, answer.code) == (401, "OpsTokenRequired")
    assert "set-cookie" not in answer.headers
    assert [asked.count for asked in service.limiter.asked] == [True]
    await guess(app, RULE.limit - 1)
    full = await signed_in(app)
    assert (full.status, full.code, "set-cookie" in full.headers) == (429, "RateLimitExceeded", False)


async def test_the_token_is_taken_from_a_form_only(app: Quart) -> None:
    """Neither a query, which ends in logs, nor another kind of body is read."""
    query = await call(app, "POST", "/ops/session", [FORM], query_string=b"token=the-operators%27-token")
    assert query.status == 401
    other = await call(app, "POST", "/ops/session", [JSON], json.dumps({"token": TOKEN}).encode())
    assert (other.status, other.code) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://here:8000"}, False),
        ({"Origin": "http://here:8000"}, True),
        ({"Origin": "https://public.example"}, True),
        *(({"Origin": text}, False) for text in ("http://here", "null", "", "http://[", "here:8000", "https://evil")),
    ],
)
def test_forms_of_other_sites_are_told_by_what_browsers_send(headers: dict[str, str], *, own: bool) -> None:
    """Sec-Fetch-Site decides where it is sent, else Origin against our own names."""
    assert own_page(Headers({"Host": "here:8000", **headers}), "public.example") is own


async def test_forms_of_other_sites_do_nothing(app: Quart) -> None:
    """They can neither sign a browser in nor out."""
    foreign = (b"sec-fetch-site", b"cross-site")
    for path in ("/ops/session", "/ops/session/end"):
        answer = await call(app, "POST", path, [FORM, foreign], b"token=the-operators%27-token", **ELSEWHERE)
        assert (answer.status, answer.code, "set-cookie" in answer.headers) == (400, "MalformedRequest", False)


# -- the mail queue ---------------------------------------------------------------------------------------------------


async def test_the_queue_is_listed_as_it_was_asked_for(service: Telling) -> None:
    """State, time and number narrow the list; one mail is shown by its id, and what is not there is 404."""
    app, service.mail_admin.owed = service.app(), [MAIL, ScriptedMail(UUID(int=2), state="queued")]
    narrow = b"state=dead&since=2026-01-31T12:00:00Z&limit=7"
    answer = await call(app, "GET", MAILS, query_string=narrow)
    assert [mail["id"] for mail in answer.json["mails"]] == [str(MAIL.id)]
    assert service.mail_admin.asked == [("dead", datetime(2026, 1, 31, 12, tzinfo=UTC), 7)]
    assert (await ask(app, "GET", f"{MAILS}/{MAIL.id}")).json["reason"] == MAIL.reason
    for unknown in (UUID(int=9), "nonsense"):
        assert (await ask(app, "GET", f"{MAILS}/{unknown}")).code == "NotFound"


QUERIES = ["state=lost", "since=yesterday", "since=999999d", "limit=0", "limit=9999", "limit=x", "limit=" + "9" * 5000]
REPLAYS: list[dict[str, Any]] = [{}, {"ids": [], "dead": True}, {"ids": ["x"]}, {"dead": True, "since": "soon"}]


async def test_what_means_nothing_is_a_clear_problem(service: Telling) -> None:
    """A query names its field; of a replay neither or both of ids and dead, what is no id, what is no time."""
    app = service.app()
    for query in QUERIES:
        answer = await call(app, "GET", MAILS, query_string=query.encode())
        assert (answer.status, answer.code) == (422, "ValidationError")
        assert answer.json["errors"][0]["field"] == query.split("=", maxsplit=1)[0]
    for fields in REPLAYS:
        assert (await ask(app, "POST", f"{MAILS}/replay", fields)).code == "ValidationError"
    assert (service.mail_admin.asked, service.mail_admin.replayed) == ([], [])


async def test_named_mails_and_dead_ones_are_replayed(service: Telling) -> None:
    """By id, or all dead ones since a time, or only said which."""
    app, service.mail_admin.owed = service.app(), [MAIL]
    named = await ask(app, "POST", f"{MAILS}/replay", {"ids": [str(UUID(int=5))]})
    assert named.json == {"dry_run": False, "replayed": [str(UUID(int=5))]}
    await ask(app, "POST", f"{MAILS}/replay", {"dead": True, "since": "2h", "dry_run": True})
    assert service.mail_admin.replayed == [([UUID(int=5)], False), ([MAIL.id], True)]
