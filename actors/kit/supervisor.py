"""Keeps actors running: rebuilds the crashed, gives up when they crash too often, drains them in order."""

from __future__ import annotations

from collections import deque
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio

from actors.kit.mailbox import Address, Mailbox

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from actors.kit.actor import Actor

RESTART_BUDGET = 5  # crashes of one actor ...
RESTART_SECONDS = 30.0  # ... within so many seconds are a bug or a broken machine: a new process is the better try


class TooManyCrashes(Exception):
    """An actor spent its restart budget: end the process and let another one start."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the actor {name} crashed more than {RESTART_BUDGET} times in {RESTART_SECONDS:g} s")


@dataclass(slots=True)
class Service:
    """One actor: how to build it, in how many copies, and the mailbox that survives its crashes."""

    build: Callable[[], Actor[Any]]
    copies: int
    mailbox: Mailbox
    actor: Actor[Any]
    crashes: deque[float] = field(default_factory=deque)
    restarts: int = 0

    @property
    def name(self) -> str:
        """The actor's name."""
        return self.actor.name


class Supervisor:
    """Runs services inside one task group and drains them in the reverse order of their start.

    Actors of later services may ask those of earlier ones, so the later drain first. After `running()` ends every
    accepted message has been settled, on cancel and after too many crashes with an error. `report` is told of each
    crash by the actor's name and the error; it must not raise.
    """

    def __init__(self, report: Callable[[str, Exception], None]) -> None:
        self._report = report
        self._services: list[Service] = []

    def start(self, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Add a service and return its address; `build` is called again after each crash."""
        actor = build()
        service = Service(build, copies, Mailbox(actor.capacity, actor.lanes), actor)
        self._services.append(service)

        def admit(ahead: int) -> None:
            service.actor.admit(ahead)  # looked up anew: a crash replaces the actor

        return Address(service.mailbox, admit)

    def services(self) -> Sequence[Service]:
        """Return the services in the order of their start, for the metrics."""
        return tuple(self._services)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all services around the body; on the way out drain them one by one.

        Raises TooManyCrashes (inside an exception group) when a service's budget is spent.
        """
        async with AsyncExitStack() as stack:
            for service in self._services:
                stack.callback(service.mailbox.abandon)
            for service in self._services:
                await stack.enter_async_context(self._running(service))
            yield

    @asynccontextmanager
    async def _running(self, service: Service) -> AsyncIterator[None]:
        """Run the copies around the body, then close the mailbox and wait until it is drained."""
        async with anyio.create_task_group() as copies:
            for _ in range(service.copies):
                copies.start_soon(self._keep, service)
            yield
            service.mailbox.close()
        await service.actor.stopped()

    async def _keep(self, service: Service) -> None:
        """Hand batches to the service's current actor until the mailbox is drained."""
        while envelopes := await service.mailbox.take(service.actor.batch_limit):
            actor = service.actor
            try:
                await actor.work(envelopes)
            except Exception as error:  # noqa: BLE001 - the one place where a crash becomes a restart
                self._charge(service, error)
                if service.actor is actor:  # another copy may have crashed over it first
                    service.actor = service.build()

    def _charge(self, service: Service, error: Exception) -> None:
        """Report the crash and raise TooManyCrashes when the budget is spent."""
        self._report(service.name, error)
        now = anyio.current_time()
        service.restarts += 1
        service.crashes.append(now)
        while service.crashes and service.crashes[0] < now - RESTART_SECONDS:
            service.crashes.popleft()
        if len(service.crashes) > RESTART_BUDGET:
            raise TooManyCrashes(service.name)
