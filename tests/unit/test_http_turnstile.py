from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from actors.access import Place
from actors.kit.mailbox import NotAccepted
from actors.ports import StoreUnavailable
from service.http.app import create_app
from service.settings import Settings
from tests.fakes.asgi import JSON, Answer, call, scope_of, serve
from tests.fakes.signup import EMAIL, PASSWORD, FakeService

if TYPE_CHECKING:
    from quart import Quart

PATH = "/api/v1/users/register"
BODY = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to: without room for a hash."""
    service = FakeService()
    service.signup.full = NotAccepted(1.5)
    return service


@pytest.fixture
def app(service: FakeService) -> Quart:
    """Return the application on Trio."""
    return create_app(Settings(loop="trio"), service)


async def stalled(app: Quart, pieces: list[bytes]) -> Answer:
    """Send pieces of a body that never ends."""
    events: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not pieces:
            await trio.sleep_forever()
        return {"type": "http.request", "body": pieces.pop(0), "more_body": True}

    async def send(event: dict[str, Any]) -> None:
        events.append(event)

    await serve(app, scope_of("POST", PATH, [JSON]), receive, send)
    return Answer(events)


async def test_without_room_nothing_of_a_registration_is_looked_at(app: Quart, service: FakeService) -> None:
    """A full house answers 503 Busy before any flow is asked, and counts the answer under the route's name."""
    answer = await call(app, "POST", PATH, [JSON], BODY)
    assert (answer.status, answer.code) == (503, "Busy")
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert (service.signup.visit, service.signup.form) == (None, None)
    (seen,) = await service.observations()
    assert (seen.route, seen.status) == (f"POST {PATH}", 503)


async def test_a_full_house_counts_against_nobody(app: Quart, service: FakeService) -> None:
    """What was not looked at was not refused."""
    assert (await call(app, "POST", PATH, [JSON], b"{")).code == "Busy"
    assert service.signup.refusals == 0


async def test_a_few_with_a_key_are_let_through(app: Quart, service: FakeService) -> None:
    """Who sends an Idempotency-Key may be answered without a hash; eight at a time are let in to find out."""
    service.signup.pause = trio.Event()
    heard: list[int] = []

    async def repeat() -> None:
        heard.append((await call(app, "POST", PATH, [JSON, (b"idempotency-key", b"k-1")], BODY)).status)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(repeat)
        await trio.testing.wait_all_tasks_blocked()
        assert heard == [503, 503]
        service.signup.pause.set()
    assert heard[2:] == [201] * 8
    assert service.signup.visit is not None
    assert service.signup.visit.place is None
    assert (await call(app, "POST", PATH, [JSON, (b"idempotency-key", b"k-1")], BODY)).status == 201


@pytest.mark.parametrize(
    ("method", "path"), [("OPTIONS", PATH), ("GET", PATH), ("GET", "/livez"), ("POST", f"{PATH}/")]
)
async def test_only_registrations_are_held(app: Quart, method: str, path: str) -> None:
    """Every other call is answered as always."""
    assert (await call(app, method, path)).status != 503


async def test_with_room_a_registration_goes_on(app: Quart, service: FakeService) -> None:
    """A place is kept while the flow runs, and left with the answer."""
    service.signup.full = None
    assert (await call(app, "POST", PATH, [JSON], BODY)).status == 201
    assert service.signup.visit is not None
    assert isinstance(service.signup.visit.place, Place)
    assert not service.signup.places


async def test_a_place_is_left_when_the_flow_fails(app: Quart, service: FakeService) -> None:
    """Nobody keeps a place beyond the answer."""
    service.signup.full, service.signup.failure = None, StoreUnavailable()
    assert (await call(app, "POST", PATH, [JSON], BODY)).code == "StoreUnavailable"
    assert not service.signup.places


@pytest.mark.parametrize("length", [b"16385", b"999999999999999999", b"1e3"])
async def test_an_announced_body_that_is_too_large_is_not_taken(app: Quart, length: bytes) -> None:
    """Nobody waits for a body that is refused by its length, whatever else is full."""
    answer = await call(app, "POST", PATH, [JSON, (b"content-length", length)], b"x" * 16_385)
    assert answer.code in {"BodyTooLarge", "MalformedRequest"}


@pytest.mark.parametrize("full", [True, False])
async def test_a_large_body_is_refused_as_that(app: Quart, service: FakeService, *, full: bool) -> None:
    """A body without an announced length that is too large is told so, room or not."""
    service.signup.full = service.signup.full if full else None
    assert (await stalled(app, [b"x" * 4096] * 100)).code == "BodyTooLarge"


async def test_a_slow_body_keeps_no_place(
    app: Quart, service: FakeService, autojump_clock: trio.testing.MockClock
) -> None:
    """Whoever never ends the body is answered after five seconds, and had no place meanwhile."""
    service.signup.full = None
    async with trio.open_nursery() as nursery:

        async def slow() -> None:
            answer = await stalled(app, [b"{"])
            assert answer.code == "RequestTimeout"
            assert answer.headers["connection"] == "close"

        nursery.start_soon(slow)
        await trio.sleep(4.9)
        assert not service.signup.places
    assert autojump_clock.current_time() == pytest.approx(5)


async def test_a_client_that_has_gone_stops_nothing_that_it_has_sent(app: Quart, service: FakeService) -> None:
    """Its end is heard of once the place is left: until then the registration is on its way to being accepted."""
    service.signup.full, service.signup.pause = None, trio.Event()
    come: list[dict[str, Any]] = [
        {"type": "http.request", "body": BODY, "more_body": False},
        {"type": "http.disconnect"},
    ]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        return come.pop(0)

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, app, scope_of("POST", PATH, [JSON]), receive, send)
        await trio.testing.wait_all_tasks_blocked()
        assert come == [{"type": "http.disconnect"}]
        (place,) = service.signup.places
        place.leave()
        await trio.testing.wait_all_tasks_blocked()
    assert (come, sent) == ([], [])
