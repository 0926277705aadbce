from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
import pytest

from actors.kit.background import BackgroundTasks
from tests.fakes.asgi import JSON, scope_of, serve
from tests.fakes.http_service import EMAIL, PASSWORD, FakeService, ScriptedSignUp

if TYPE_CHECKING:
    from actors.limits import Client
    from actors.signup import Form, Registration

BODY = json.dumps({"email": EMAIL, "password": PASSWORD}).encode()


class SlowSignUp(ScriptedSignUp):
    """Registers when it may, and writes down what it has registered."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.may = anyio.Event(), anyio.Event()
        self.done: list[str] = []

    async def register(self, client: Client, form: Form) -> Registration | None:
        """Wait, then register."""
        self.asked.set()
        await self.may.wait()
        self.done.append(form.email)
        return await super().register(client, form)


@pytest.mark.parametrize("loop", ["trio", "uvloop"])
def test_a_client_that_leaves_stops_nothing(loop: Literal["trio", "uvloop"]) -> None:
    """A flow that was begun goes on although its client is gone; nothing is sent, and no answer is counted."""

    async def leave() -> None:
        service, sent = FakeService(), list[object]()
        service.signup = signup = SlowSignUp()
        requests = [{"type": "http.request", "body": BODY, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if requests:
                return requests.pop()
            await signup.asked.wait()
            await anyio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}

        async def send(event: object) -> None:
            sent.append(event)

        async with BackgroundTasks.open() as service.background:
            scope = scope_of("POST", "/api/v1/users/register", [JSON])
            await serve(service.app(loop=loop), scope, receive, send)
            assert not signup.done
            signup.may.set()
        assert signup.done == [EMAIL]
        assert sent == []
        assert await service.observations() == []

    anyio.run(leave, backend="trio" if loop == "trio" else "asyncio")
