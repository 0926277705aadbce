from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from pydantic_core import to_json

from actors.metrics_aggregator import Observation
from service.http.middleware import ENDING
from service.http.ops_pages import LIFE_SECONDS, MOST_STREAMS, snapshot
from tests.fakes.asgi import call, scope_of, serve
from tests.fakes.http_service import Telling, metrics

if TYPE_CHECKING:
    from quart import Quart

LOOPS = pytest.mark.parametrize("loop", ["trio", "uvloop"])


class Reader:
    """A client of a stream that reads as far as the test says, and then leaves."""

    def __init__(self, app: Quart, ending: anyio.Event | None = None) -> None:
        self.scope = scope_of("GET", "/ops/events", [], **({ENDING: ending} if ending else {}))
        self.app = app
        self.status = 0
        self.text = ""
        self.leave = anyio.Event()
        self.read_some = anyio.Event()

    async def read(self) -> None:
        """Read the stream until it ends, or the reader leaves."""
        requests = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await self.leave.wait()
            return {"type": "http.disconnect"}

        async def send(event: dict[str, Any]) -> None:
            self.status = event.get("status", self.status)
            self.text += event.get("body", b"").decode()
            if "data: {" in self.text or self.status != 200:
                self.read_some.set()
            if not event.get("more_body", True):
                self.leave.set()

        await serve(self.app, self.scope, receive, send)


def test_a_snapshot_has_everything_that_the_page_shows() -> None:
    """Counts by route and status, one histogram over all, levels summed over workers, reasons by number, all notes."""
    shown = json.loads(to_json(snapshot(metrics(), ["Redis is away.", "Behind a proxy."], "1.2")))
    assert [(each["route"], each["statuses"]) for each in shown["routes"]] == [
        ("GET /livez", {"200": 2}),
        ("POST /x", {"503": 1}),
    ]
    assert (shown["routes"][0]["latency"]["count"], shown["routes"][1]["latency"]) == (2, None)
    assert shown["buckets"][0] == [5, 1]
    assert shown["buckets"][-2:] == [[10000, 2], [None, 3]]
    assert shown["limits"] == [
        {"rule": "invalid", "admitted": 0, "refused": 2},
        {"rule": "register", "admitted": 4, "refused": 0},
    ]
    assert shown["breakers"] == [{"server": "redis", "open": 2, "opened": 1}]
    assert shown["actors"] == [{"actor": "UserRegistry", "waiting": 4, "turned_away": 0, "dropped": 0, "restarts": 0}]
    assert list(shown["mail"]["dead"].items()) == [("554 refused", 2), ("550 unknown", 1)]
    assert (shown["mail"]["sending"], shown["mail"]["oldest_queued_seconds"]) == (1, 12.3)
    assert shown["notes"] == ["Redis is away.", "Behind a proxy."]


@LOOPS
def test_a_stream_sends_a_snapshot_every_two_seconds_until_the_worker_leaves(loop: str) -> None:
    """Retry, a beat, snapshots as one line of JSON each, and a good-bye at once when the worker leaves."""

    async def follow() -> None:
        ending = anyio.Event()
        client = Reader(Telling().app(loop=loop), ending)
        async with anyio.create_task_group() as group:
            group.start_soon(client.read)
            await client.read_some.wait()
            began = anyio.current_time()
            ending.set()
        assert anyio.current_time() - began < 1.0
        assert client.text.startswith("retry: 1000\n\n: beat\n\ndata: {")
        assert client.text.endswith("event: bye\ndata: This worker ends. Connecting to another one.\n\n")
        (line,) = (each for each in client.text.splitlines() if each.startswith("data: {"))
        assert json.loads(line.removeprefix("data: "))["workers"] == 2

    anyio.run(follow, backend="trio" if loop == "trio" else "asyncio")


@LOOPS
def test_a_client_that_leaves_frees_its_place(loop: str) -> None:
    """As many streams as there is room for run at a time; one more gets 503, and room once another has left."""

    async def crowd() -> None:
        app = Telling().app(loop=loop)
        clients = [Reader(app) for _ in range(MOST_STREAMS)]
        async with anyio.create_task_group() as group:
            for client in clients:
                group.start_soon(client.read)
            for client in clients:
                await client.read_some.wait()
            late = await call(app, "GET", "/ops/events")
            assert (late.status, late.code, late.headers["retry-after"]) == (503, "Busy", "5")
            clients[0].leave.set()
            while (await call(app, "HEAD", "/ops/events")).status != 200:
                await anyio.lowlevel.checkpoint()
            clients.append(Reader(app))
            group.start_soon(clients[-1].read)
            await clients[-1].read_some.wait()
            assert clients[-1].status == 200
            for client in clients:
                client.leave.set()

    anyio.run(crowd, backend="trio" if loop == "trio" else "asyncio")


async def test_a_worker_that_leaves_opens_no_stream() -> None:
    """The client gets 503 with Retry-After, and reaches another worker."""
    ending = anyio.Event()
    ending.set()
    answer = await call(Telling().app(), "GET", "/ops/events", **{ENDING: ending})
    assert (answer.status, answer.code) == (503, "Busy")


async def test_a_stream_goes_on_while_nothing_can_be_read_and_ends_after_its_time(autojump_clock: object) -> None:
    """Trouble is an event, snapshots come again after it, beats never stop, and a quarter of an hour is the end."""
    service = Telling()
    reader = service.reader
    known, reader.metrics = reader.metrics, None
    client = Reader(service.app())
    began = anyio.current_time()

    async def come_back() -> None:
        await anyio.sleep(5)
        reader.metrics = known

    async with anyio.create_task_group() as group:
        group.start_soon(come_back)
        await client.read()
    assert anyio.current_time() - began == pytest.approx(LIFE_SECONDS, abs=1)
    assert client.text.count("event: trouble") == 3
    assert client.text.count("data: {") == client.text.count(": beat") - 3 > 400


async def test_a_stream_is_counted_when_it_begins() -> None:
    """Its observation has the time to the beginning, and there is one, however long the stream goes on."""
    service = Telling()
    app = service.app()
    client = Reader(app)
    async with anyio.create_task_group() as group:
        group.start_soon(client.read)
        await client.read_some.wait()
        (seen,) = await service.observations()
        assert isinstance(seen, Observation)
        assert (seen.route, seen.status) == ("GET /ops/events", 200)
        client.leave.set()
    assert await service.observations() == []


async def test_a_head_request_gets_no_stream() -> None:
    """It has the headers that keep proxies from collecting events, and an end."""
    answer = await call(Telling().app(), "HEAD", "/ops/events")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["connection"] == "close"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-store", "no")
    assert answer.body == b""
