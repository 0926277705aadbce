"""What wiring asks of traces: to put itself around the parts worth seeing. Without traces each part stays as it is."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from actors.kit.actor import Actor
    from actors.kit.mailbox import Address
    from actors.kit.supervisor import Supervisor
    from actors.mail_ports import Outbox, Postman
    from actors.mail_room import Deliver

    Opening = Callable[[str], AbstractAsyncContextManager["Tracing"]]


class Tracing(Protocol):
    """The traces of one process."""

    def application(self, application: Any) -> Any:  # noqa: ANN401 - any ASGI framework
        """Return the ASGI application, its requests traced."""
        ...

    def employ(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Employ an actor; what it is asked, and how it handles each batch, is traced."""
        ...

    def outbox(self, outbox: Outbox) -> Outbox:
        """Return the outbox, its claims and outcomes traced."""
        ...

    def postman(self, postman: Postman, way: str) -> Postman:
        """Return the postman, each send traced; `way` is the scheme of MAIL_URL."""
        ...

    def delivery(self, deliver: Deliver) -> Deliver:
        """Return the delivery of one mail, as a part of the trace of the request that owed it."""
        ...


class Untraced:
    """The default: everything as it is."""

    def application(self, application: Any) -> Any:  # noqa: ANN401 - as above
        """Return the application."""
        return application

    def employ(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Employ the actor."""
        return supervisor.employ(build, copies=copies)

    def outbox(self, outbox: Outbox) -> Outbox:
        """Return the outbox."""
        return outbox

    def postman(self, postman: Postman, way: str) -> Postman:  # noqa: ARG002 - as the Protocol has it
        """Return the postman."""
        return postman

    def delivery(self, deliver: Deliver) -> Deliver:
        """Return the delivery."""
        return deliver


UNTRACED = Untraced()


@asynccontextmanager
async def untraced(_process: str) -> AsyncIterator[Tracing]:
    """Give no traces around the body."""
    yield UNTRACED
