from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from werkzeug.datastructures import Headers

from service.http.client import Clients
from service.http.ops import LIFETIME_SECONDS, OpsAccess, OpsSession, own_page
from service.settings import Settings
from tests.fakes.asgi import Pairs, call
from tests.fakes.http_service import FakeService, PromptLimiter, Telling

if TYPE_CHECKING:
    from quart import Quart

    from tests.fakes.http_service import FakeService

TOKEN = "the-operators'-token"
FORM = (b"content-type", b"application/x-www-form-urlencoded")
HTML = (b"accept", b"text/html")
ELSEWHERE = {"client": ("192.0.2.7", 5)}


def guarded(service: FakeService | None = None, /, **settings: Any) -> Quart:  # noqa: ANN401 - any setting
    """Return the application with the operators' token set."""
    return (service or Telling()).app(ops_token=TOKEN, **settings)


def cookie_of(value: str) -> Pairs:
    """Return the header that sends a cookie back."""
    return [(b"cookie", value.partition(";")[0].encode())]


async def signed_in(app: Quart, *headers: tuple[bytes, bytes], token: str = TOKEN) -> Any:  # noqa: ANN401 - an answer
    """Send the form."""
    body = f"token={token.replace(' ', '+')}".encode()
    return await call(app, "POST", "/ops/session", [FORM, *headers], body, **ELSEWHERE)


async def test_programs_without_the_token_are_refused_and_browsers_asked_for_it() -> None:
    """With a token set /ops leads a browser to the form; every other call is a 401, the feed always."""
    app = guarded()
    browser = await call(app, "GET", "/ops", [HTML], **ELSEWHERE)
    assert (browser.status, browser.headers["location"]) == (303, "/ops/session")
    form = await call(app, "GET", "/ops/session", [HTML], **ELSEWHERE)
    assert b'name="token"' in form.body
    for path, headers in (("/ops", []), ("/ops/events", []), ("/ops/events", [HTML])):
        refused = await call(app, "GET", path, headers, **ELSEWHERE)
        assert (refused.status, refused.code) == (401, "OpsTokenRequired")


async def test_the_token_itself_opens_too() -> None:
    """Programs send it as they do everywhere; a wrong one does not lead to a form."""
    app = guarded()
    right = (b"authorization", f"Bearer {TOKEN}".encode())
    assert (await call(app, "GET", "/ops", [HTML, right], **ELSEWHERE)).status == 200
    assert (await call(app, "GET", "/ops", [HTML, (b"authorization", b"Bearer other")], **ELSEWHERE)).status == 401


async def test_without_a_token_only_this_machine_is_let_in() -> None:
    """No sign-in is needed on loopback, and a other gets nothing, not even a form that works."""
    app = Telling().app()
    assert (await call(app, "GET", "/ops", [HTML])).status == 200
    assert (await call(app, "GET", "/ops/session", [HTML])).headers["location"] == "/ops"
    for path in ("/ops", "/ops/events"):
        other = await call(app, "GET", path, [HTML], **ELSEWHERE)
        assert (other.status, other.code) == (403, "OpsTokenRequired")
    answer = await signed_in(app)
    assert (answer.status, "set-cookie" in answer.headers) == (303, False)


async def test_the_right_token_becomes_a_cookie_that_opens_the_pages() -> None:
    """The cookie is for this path, for the browser alone and for no other site; it opens page and feed alone."""
    app = guarded()
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


@pytest.mark.parametrize(
    ("settings", "headers"), [({"public_url": "https://sign-up.example"}, []), ({}, [(b"x-forwarded-proto", b"https")])]
)
async def test_over_https_the_cookie_is_secure(settings: dict[str, str], headers: Pairs) -> None:
    """Browsers then never send it in clear."""
    assert (await signed_in(guarded(**settings), *headers)).headers["set-cookie"].endswith("; Secure")


async def test_a_session_ends_with_its_time_its_token_and_the_button() -> None:
    """After eight hours, under another token, or changed in one character, a value is no session."""
    now = [1_700_000_000.0]

    def under(token: str) -> OpsSession:
        settings = Settings.model_validate({"ops_token": token})
        visits = Clients(settings.trusted_proxies, lambda _: None, Counter())
        return OpsSession(settings, OpsAccess(settings, visits, PromptLimiter()), lambda: now[0])

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
    out = await call(guarded(), "POST", "/ops/session/end", [], **ELSEWHERE)
    assert (out.status, out.headers["location"]) == (303, "/ops/session")
    assert {"vestibule_ops=", "Max-Age=0"} <= set(out.headers["set-cookie"].split("; "))


@pytest.mark.parametrize(
    "body",
    [
        b"token=wrong",
        b"token=",
        b"",
        b"token=the-operators%27-token&token=x",
        b"\xff\xfe",
        b"Token=the-operators'-token",
    ],
)
async def test_a_wrong_token_is_counted_and_refused(body: bytes) -> None:
    """It is a 401 without a cookie, and one of the client's guesses."""
    service = Telling()
    answer = await call(guarded(service), "POST", "/ops/session", [FORM], body, **ELSEWHERE)
    assert (answer.status, answer.code) == (401, "OpsTokenRequired")
    assert "set-cookie" not in answer.headers
    assert [asked.count for asked in service.limiter.asked] == [True]


async def test_the_token_is_taken_from_a_form_only() -> None:
    """Neither a query, which ends in logs, nor another kind of body is read."""
    app = guarded()
    query = await call(app, "POST", "/ops/session", [FORM], query_string=b"token=the-operators%27-token")
    assert query.status == 401
    body = json.dumps({"token": TOKEN}).encode()
    other = await call(app, "POST", "/ops/session", [(b"content-type", b"application/json")], body)
    assert (other.status, other.code) == (415, "UnsupportedMediaType")


@pytest.mark.parametrize(
    ("headers", "own"),
    [
        ({}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "none"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://here:8000"}, False),
        ({"Origin": "http://here:8000"}, True),
        ({"Origin": "https://public.example"}, True),
        ({"Origin": "http://here"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({"Origin": "http://["}, False),
        ({"Origin": "here:8000"}, False),
        ({"Origin": "https://evil.example"}, False),
    ],
)
def test_forms_of_other_sites_are_told_by_what_browsers_send(headers: dict[str, str], *, own: bool) -> None:
    """Sec-Fetch-Site decides where it is sent, else Origin against our own names."""
    assert own_page(Headers({"Host": "here:8000", **headers}), "public.example") is own


@pytest.mark.parametrize("path", ["/ops/session", "/ops/session/end"])
async def test_forms_of_other_sites_do_nothing(path: str) -> None:
    """They can neither sign a browser in nor out."""
    foreign = (b"sec-fetch-site", b"cross-site")
    answer = await call(guarded(), "POST", path, [FORM, foreign], b"token=the-operators%27-token", **ELSEWHERE)
    assert (answer.status, answer.code) == (400, "MalformedRequest")
    assert "set-cookie" not in answer.headers


async def test_the_pages_load_nothing_from_elsewhere() -> None:
    """No other host, no inline script or style; the policy forbids both, and the referrer stays here."""
    app = Telling().app()
    for application, path in ((app, "/ops"), (guarded(), "/ops/session")):
        page = await call(application, "GET", path, [HTML])
        assert b"//" not in page.body.replace(b"<!doctype", b"")
        assert b"style=" not in page.body
        assert b"<script>" not in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert "unsafe" not in page.headers["content-security-policy"]
        assert page.headers["referrer-policy"] == "same-origin"
