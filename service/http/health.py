"""Health: whether the process answers, whether it can take registrations, and how its servers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import anyio

from service.http.openapi import describes
from service.http.problems import NotReady
from service.http.schemas import View

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from quart import Response

Verdict = Literal["ok", "degraded", "down"]

CHECK_SECONDS = 1.5  # a check that takes longer has failed; probes give up after two


class Health(Protocol):
    """What can be asked about the process and its servers; nothing raises, and each check may be cancelled."""

    @property
    def draining(self) -> bool:
        """Whether the process is about to stop."""
        ...

    async def database(self) -> Verdict:
        """Try the database; `down` means that nothing can be registered."""
        ...

    async def redis(self) -> Verdict:
        """Try Redis; without it the limits are kept in the database."""
        ...

    async def mail_queue(self) -> Verdict:
        """Look whether owed mails leave in time."""
        ...

    def note(self, sentence: str) -> None:
        """Add a sentence to the notes, once."""
        ...

    async def notes(self) -> Sequence[str]:
        """Return the sentences for the operator."""
        ...


class ChecksView(View):
    """What each check says."""

    database: Verdict
    redis: Verdict
    mail_queue: Verdict


class HealthView(View):
    """How the service is; `down` only when the database is away."""

    status: Verdict
    version: str
    checks: ChecksView
    notes: list[str]


class UpView(View):
    """The process answers."""

    status: Literal["ok"] = "ok"


HTTP_STATUS: dict[Verdict, int] = {"ok": 200, "degraded": 200, "down": 503}


class HealthCalls:
    """The handlers, around what can be asked."""

    def __init__(self, health: Health, version: str) -> None:
        self._health = health
        self._version = version

    @describes({200: UpView})
    async def live(self) -> Response:
        """Say whether the process answers."""
        return UpView().response()

    @describes({200: UpView}, problems=(NotReady,))
    async def ready(self) -> Response:
        """Say whether the process can take registrations.

        Raises NotReady with what fails.
        """
        failing = ["draining"] if self._health.draining else []
        if await _bounded(self._health.database) == "down":
            failing.append("database")
        if failing:
            raise NotReady(failing)
        return UpView().response()

    @describes({200: HealthView, 503: HealthView})
    async def report(self) -> Response:
        """Say how the service and its servers are.

        Every check is bounded, so the answer comes within the time of one.
        """
        checks = await self._checks()
        if checks.database == "down":
            status: Verdict = "down"
        else:
            status = "ok" if {checks.redis, checks.mail_queue, checks.database} == {"ok"} else "degraded"
        view = HealthView(status=status, version=self._version, checks=checks, notes=list(await self._health.notes()))
        return view.response(HTTP_STATUS[status])

    async def _checks(self) -> ChecksView:
        verdicts: dict[str, Verdict] = {}

        async def ask(name: str, check: Callable[[], Awaitable[Verdict]]) -> None:
            verdicts[name] = await _bounded(check)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "database", self._health.database)
            group.start_soon(ask, "redis", self._health.redis)
            group.start_soon(ask, "mail_queue", self._health.mail_queue)
        return ChecksView.model_validate(verdicts)


async def _bounded(check: Callable[[], Awaitable[Verdict]]) -> Verdict:
    with anyio.move_on_after(CHECK_SECONDS):
        return await check()
    return "down"
