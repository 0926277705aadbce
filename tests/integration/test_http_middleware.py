from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loguru import logger

from tests.fakes.asgi import JSON, Answer, Pairs, call, scope_of, serve
from tests.fakes.http_service import EMAIL, PASSWORD, TOKEN, FakeService

if TYPE_CHECKING:
    from collections.abc import Iterator

    from quart import Quart


ORIGIN = b"https://shop.example.com"


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def app(service: FakeService) -> Quart:
    """Return the application on Trio, with one allowed origin."""
    return service.app(cors_origins=ORIGIN.decode())


async def test_every_answer_has_the_security_headers(app: Quart) -> None:
    """Answers of every kind carry the security headers and name no server's version."""
    for method, path in (("GET", "/livez"), ("GET", "/nowhere"), ("DELETE", "/livez"), ("CONNECT", "host:443")):
        answer = await call(app, method, path)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers
        assert "strict-transport-security" not in answer.headers


async def test_https_is_insisted_on_where_people_reach_us_by_it(service: FakeService) -> None:
    """With an https PUBLIC_URL browsers are told to stay with it."""
    app = service.app(loop="trio", public_url="https://signup.example.com")
    assert "strict-transport-security" in (await call(app, "GET", "/livez")).headers


@pytest.mark.parametrize("given", [b"abc-123_X.y", b"a", b"x" * 64])
async def test_the_callers_request_id_is_kept(app: Quart, given: bytes) -> None:
    """A plain id of the caller comes back."""
    answer = await call(app, "GET", "/livez", [(b"X-Request-ID", given)])
    assert answer.headers["x-request-id"] == given.decode()


@pytest.mark.parametrize("given", [[b"x" * 65], [b""], [b"a b"], [b"a\nb"], [b"\xff"], [b"a", b"b"]])
async def test_other_request_ids_are_replaced(app: Quart, given: list[bytes]) -> None:
    """What could break a log line, or comes twice, is replaced by one of ours."""
    answer = await call(app, "GET", "/livez", [(b"x-request-id", value) for value in given])
    ours = answer.headers["x-request-id"]
    assert len(ours) == 32
    assert ours.isalnum()


async def test_unknown_paths_and_methods_are_problems(app: Quart) -> None:
    """404 and 405 are problems; a 405 names the methods."""
    assert (await call(app, "GET", "/nowhere")).code == "NotFound"
    assert (await call(app, "GET", "/livez/")).code == "NotFound"
    assert (await call(app, "GET", "/api/v1/users/activation/a/b")).code == "NotFound"
    answer = await call(app, "DELETE", "/api/v1/users/register")
    assert (answer.status, answer.code) == (405, "MethodNotAllowed")
    assert set(answer.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
    answer = await call(app, "BREW", "/livez")
    assert set(answer.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


async def test_head_is_get_without_a_body(app: Quart) -> None:
    """HEAD has the status and length of GET and sends nothing."""
    got = await call(app, "GET", "/livez")
    head = await call(app, "HEAD", "/livez")
    assert (head.status, head.headers["content-length"], head.body) == (200, got.headers["content-length"], b"")
    assert (await call(app, "HEAD", "/nowhere")).body == b""


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "code"),
    [
        ("CONNECT", "example.com:443", [], 405, "MethodNotAllowed"),
        ("POST", "/livez", [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")], 400, "MalformedRequest"),
        ("GET", "/livez", [(b"x-long", b"a" * 17_000)], 431, "HeadersTooLarge"),
        ("GET", "/livez", [(b"x-many", b"a")] * 101, 431, "HeadersTooLarge"),
        ("GET", "/" + "a" * 17_000, [], 431, "HeadersTooLarge"),
        ("GET", "/livez", [(b"x-broken", b"a\r\nb")], 400, "MalformedRequest"),
        ("GET", "*", [], 400, "MalformedRequest"),
        ("GET", "http://[::1", [], 400, "MalformedRequest"),
        ("GET", "ftp://host/livez", [], 400, "MalformedRequest"),
    ],
)
async def test_the_edge_refuses(  # noqa: PLR0913, PLR0917 - the figures of one case
    app: Quart, method: str, path: str, headers: Pairs, status: int, code: str
) -> None:
    """Requests that servers disagree about, or that nobody needs, are refused before any handler."""
    answer = await call(app, method, path, headers)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["x-request-id"]
    ends = status == 431 or len(headers) == 2  # what follows a smuggled length on the connection is not trusted
    assert (answer.headers.get("connection") == "close") is ends


async def test_an_absolute_target_is_its_path(app: Quart) -> None:
    """RFC 9112, 3.2.2: servers accept the absolute form."""
    assert (await call(app, "GET", "http://any.example.com/livez")).status == 200


async def test_a_large_body_is_refused_unread(app: Quart) -> None:
    """An announced length over 16 KiB is a 413 although the body never comes."""
    headers = [JSON, (b"content-length", b"16385")]
    answer = await call(app, "POST", "/api/v1/users/register", headers)
    assert (answer.status, answer.code) == (413, "BodyTooLarge")
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_of_a_body_without_end_little_is_taken(service: FakeService, loop: Literal["trio", "uvloop"]) -> None:
    """What comes in pieces, without a length, is refused once it is too large, and the rest is kept nowhere."""
    events: list[dict[str, Any]] = []
    taken: list[int] = []

    async def receive() -> dict[str, Any]:
        await anyio.lowlevel.checkpoint()
        if events and not events[-1].get("more_body", True):
            return {"type": "http.disconnect"}
        taken.append(4096)
        return {"type": "http.request", "body": b" " * taken[-1], "more_body": True}

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    scope = scope_of("POST", "/api/v1/users/resend", [JSON, (b"authorization", b"Basic YTpi")])
    app = service.app(loop=loop)
    anyio.run(serve, app, scope, receive, send, backend="trio" if loop == "trio" else "asyncio")
    assert Answer(events).code == "BodyTooLarge"
    assert len(taken) < 100


async def test_a_slow_body_is_a_timeout(app: Quart, autojump_clock: object) -> None:
    """A body that does not end within a few seconds is a 408."""
    assert autojump_clock
    events: list[dict[str, Any]] = []
    requests = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> dict[str, Any]:
        if not requests:
            await anyio.sleep_forever()
        return requests.pop()

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    await serve(app, scope_of("POST", "/api/v1/users/register", [JSON]), receive, send)
    answer = Answer(events)
    assert (answer.status, answer.code) == (408, "RequestTimeout")


async def test_cors_is_for_the_listed_origins_only(app: Quart) -> None:
    """A listed origin may read answers and send our headers; another gets no CORS header at all."""
    answer = await call(app, "OPTIONS", "/api/v1/users/register", [(b"origin", ORIGIN)])
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN.decode()
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "Idempotency-Key" in answer.headers["access-control-allow-headers"]
    answer = await call(app, "GET", "/nowhere", [(b"origin", ORIGIN)])
    assert answer.headers["access-control-allow-origin"] == ORIGIN.decode()
    assert "Retry-After" in answer.headers["access-control-expose-headers"]
    for other in ([b"https://evil.example.com"], [ORIGIN + b".evil.com"], [b"null"], [ORIGIN, ORIGIN], []):
        answer = await call(app, "GET", "/livez", [(b"origin", value) for value in other])
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert answer.headers["vary"] == "Origin"


async def test_web_sockets_are_not_found(app: Quart) -> None:
    """Where the server can answer, the answer is a 404; else the connection is closed."""
    offers: list[dict[str, Any]] = [{"websocket.http.response": {}}, {}]
    for extensions in offers:
        events: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "websocket.connect"}

        async def send(event: dict[str, Any], events: list[dict[str, Any]] = events) -> None:
            events.append(event)

        scope: Any = {"type": "websocket", "path": "/livez", "headers": [], "extensions": extensions}
        await serve(app, scope, receive, send)
        assert events[0].get("status", 404) == 404
        assert len(extensions) == len([head for head in events[0].get("headers", []) if head[0] == b"x-request-id"])
        assert events[0]["type"] == ("websocket.http.response.start" if extensions else "websocket.close")


def test_the_application_runs_on_asyncio_too(service: FakeService) -> None:
    """Under the default loop the same request has the same answer."""
    app = service.app(loop="uvloop")
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    answer = anyio.run(call, app, "POST", "/api/v1/users/register", [JSON], body, backend="asyncio")
    assert answer.status == 201


PATHS = st.sampled_from(["/api/v1/users/register", "/api/v1/users/activate", "/api/v1/users/resend", "/ops/session"])
HEADER = st.tuples(
    st.sampled_from([b"content-type", b"authorization", b"idempotency-key", b"accept-language", b"origin", b"host"]),
    st.binary(max_size=30) | st.sampled_from([b"application/json", b"Basic YTpi", b"de;q=\xff", b"http://[", b"utf-8"]),
)


@settings(max_examples=60, deadline=None)
@given(path=PATHS, headers=st.lists(HEADER, max_size=4), body=st.binary(max_size=60), json_first=st.booleans())
async def test_no_bytes_make_a_500(path: str, headers: Pairs, body: bytes, *, json_first: bool) -> None:
    """Whatever headers and bodies come, the answer is no failure of ours."""
    app = FakeService().app(loop="trio")
    answer = await call(app, "POST", path, [JSON, *headers] if json_first else headers, body)
    assert 200 <= answer.status < 500


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """Collect what is logged: the template and the extras."""
    collected: list[dict[str, Any]] = []
    sink = logger.add(lambda line: collected.append({"template": line.record["message"], **line.record["extra"]}))
    yield collected
    logger.remove(sink)


async def test_one_observation_per_answer(app: Quart, service: FakeService) -> None:
    """A route is its template; what matched none is one label."""
    await call(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    await call(app, "GET", "/api/v1/users/activation/forged")
    await call(app, "GET", "/nowhere/1")
    await call(app, "BREW", "/livez")
    await call(app, "CONNECT", "host:1")
    seen = [(observation.route, observation.status) for observation in await service.observations()]
    template = "GET /api/v1/users/activation/{token}"
    unknown = [("unknown", status) for status in (404, 405, 405)]
    assert seen == [(template, 200), (template, 404), *unknown]


async def test_one_line_of_log_per_answer(app: Quart, lines: list[dict[str, Any]]) -> None:
    """A line has id, template, status and time, and nothing that the client sent."""
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    await call(
        app, "POST", "/api/v1/users/register", [JSON, (b"x-request-id", b"mine")], body, query_string=b"q=secret"
    )
    (line,) = lines
    took = line.pop("ms")
    assert took >= 0
    assert line == {"template": "request", "request_id": "mine", "route": "POST /api/v1/users/register", "status": 201}


async def test_the_line_names_the_callers_trace(app: Quart, lines: list[dict[str, Any]]) -> None:
    """With a trace context of the caller the line has the trace id, with traces off too."""
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    await call(app, "GET", "/livez", [(b"traceparent", f"00-{trace}-00f067aa0ba902b7-01".encode())])
    assert [line["trace_id"] for line in lines] == [trace]


async def test_a_crash_is_logged_without_its_text(
    app: Quart, service: FakeService, lines: list[dict[str, Any]]
) -> None:
    """The type of an unknown error is logged and its 500 counted; its text, which may hold secrets, is not logged."""
    service.signup.failure = RuntimeError("hunter2")
    answer = await call(app, "GET", f"/api/v1/users/activation/{TOKEN}")
    assert (answer.status, answer.code) == (500, "InternalError")
    assert [line["template"] for line in lines] == ["unhandled error", "request"]
    assert lines[0]["error"] == "RuntimeError"
    assert "hunter2" not in str(lines)
