from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest

from actors.kit.actor import Actor
from actors.kit.mailbox import Ask
from actors.kit.supervisor import Supervisor
from service.http.app import create_app
from service.settings import Settings
from tests.fakes.asgi import JSON, scope_of, serve
from tests.fakes.signup import EMAIL, PASSWORD, FakeService, ScriptedSignUp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.forms import Form, Registration, Visit
    from actors.kit.mailbox import Letter


class Worker(Actor["Work"]):
    """Writes down what it was asked, once it may."""

    name = "Worker"

    def __init__(self, may: anyio.Event, done: list[str]) -> None:
        self._may = may
        self._done = done

    async def handle(self, letters: Sequence[Letter[Work]]) -> None:
        """Wait for leave, then settle."""
        await self._may.wait()
        for letter in letters:
            self._done.append(letter.message.email)
            letter.answer(None)


@dataclass(frozen=True, slots=True)
class Work(Ask[None]):
    """Made up here."""

    email: str


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_a_client_that_leaves_stops_nothing(loop: Literal["trio", "uvloop"]) -> None:
    """Work that was accepted is done although its client is gone; nothing is sent, and no answer counted."""
    done: list[str] = []

    async def leave() -> None:
        may, asked = anyio.Event(), anyio.Event()
        supervisor = Supervisor(lambda *_: None)
        worker = supervisor.employ(lambda: Worker(may, done))

        class Asking(ScriptedSignUp):
            async def register(self, visit: Visit, form: Form) -> Registration:
                asked.set()
                visit.leave()  # as the flow does when it asks for the hash
                await worker.ask(Work(form.email))
                return await super().register(visit, form)

        service = FakeService()
        service.signup = Asking()
        app = create_app(Settings(loop=loop), service)
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await asked.wait()
            await anyio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}

        async def send(event: object) -> None:
            sent.append(event)

        async with supervisor.running():
            await serve(app, scope_of("POST", "/api/v1/users/register", [JSON]), receive, send)
            assert not done
            may.set()
        assert await service.observations() == []

    sent: list[object] = []
    body = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()
    anyio.run(leave, backend="trio" if loop == "trio" else "asyncio")
    assert done == [EMAIL]
    assert sent == []
