"""Calls an ASGI application as a server would."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from quart import Quart

Pairs = list[tuple[bytes, bytes]]
JSON = (b"content-type", b"application/json")


class Answer:
    """What came out of an ASGI application."""

    def __init__(self, events: list[dict[str, Any]]) -> None:
        assert events[0]["type"] == "http.response.start"
        self.status: int = events[0]["status"]
        self.pairs = [(name.decode(), value.decode()) for name, value in events[0]["headers"]]
        self.headers = dict(self.pairs)
        self.body = b"".join(event["body"] for event in events[1:])

    @property
    def code(self) -> str:
        """The stable code of a problem, which has the form of RFC 9457."""
        assert self.headers["content-type"] == "application/problem+json"
        said = self.json
        assert said["status"] == self.status
        assert said["type"].startswith("/problems/")
        assert {"title", "detail"} <= said.keys()
        return str(said["error"])

    @property
    def json(self) -> Any:  # noqa: ANN401 - whatever it says
        """The body, read."""
        return json.loads(self.body)

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode()


def scope_of(method: str, path: str, headers: Pairs, **members: object) -> Any:  # noqa: ANN401 - as servers make it
    """Return the scope of a request from this machine."""
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "http_version": "1.1",
        "headers": [(b"host", b"localhost"), *headers],
        "client": ("127.0.0.1", 50_000),
        **members,
    }


async def serve(
    app: Quart,
    scope: object,
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Call the application with events as dictionaries, which is what servers send it."""
    application: Any = app
    await application(scope, receive, send)


async def call(
    app: Quart, method: str, path: str, headers: Pairs | None = None, body: bytes = b"", /, **scope: object
) -> Answer:
    """Send one request as an ASGI server would, and hang up when its answer is complete."""
    events: list[dict[str, Any]] = []
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    answered = anyio.Event()

    async def receive() -> dict[str, Any]:
        if requests:
            return requests.pop()
        await answered.wait()
        return {"type": "http.disconnect"}

    async def send(event: dict[str, Any]) -> None:
        events.append(event)
        if not event.get("more_body", True):
            answered.set()

    await serve(app, scope_of(method, path, headers or [], **scope), receive, send)
    return Answer(events)


async def ask(app: Quart, method: str, path: str, sent: object = None, /, **headers: str) -> Answer:
    """Send one request, with JSON if there is something to send; a header's name has underscores for hyphens."""
    pairs = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    body = b"" if sent is None else json.dumps(sent).encode()
    return await call(app, method, path, [*([JSON] if body else []), *pairs], body)


def basic(email: str, password: str) -> str:
    """Return the header's value that carries the credentials."""
    return "Basic " + b64encode(f"{email}:{password}".encode()).decode()
