"""What people ask of a service under test: registrations, with their mails, and activations."""

from __future__ import annotations

import asyncio
import base64
import json
from time import monotonic
from typing import TYPE_CHECKING

from client import Connection, Load, closed_loop
from machine import cpu_seconds
from report import ROLES

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from client import Answer
    from services import MailSink, Service

    Ask = Callable[[Connection, int], Coroutine[None, None, Answer]]

PASSWORD = "correct horse battery staple"  # noqa: S105 - of accounts that live for a minute
USUAL_CLIENTS = 16
MAILS_SECONDS = 120.0


class Bench:
    """One service at one cost, what its mail server took, and the figures of all rounds."""

    def __init__(self, service: Service, sink: MailSink, name: str) -> None:
        self.service = service
        self.sink = sink
        self.name = name
        self.registered = 0
        self.answered: dict[str, float] = {}  # when each registration was answered (CLOCK_MONOTONIC)

    def register(self, service: Service | None = None) -> Ask:
        """Return a call that registers a new address for each number."""
        first, self.registered = self.registered, self.registered + 1_000_000
        name = self.name if service is None else f"{self.name}-{service.port}"

        async def ask(connection: Connection, number: int) -> Answer:
            email = f"{name}-{first + number}@example.org"
            body = json.dumps({"email": email, "password": PASSWORD}).encode()
            answer = await connection.request("POST", "/api/v1/users/register", body)
            self.answered[email] = monotonic()
            return answer

        return ask

    async def activate(self) -> tuple[Ask, int]:
        """Return a call that activates one account for each number, and how many numbers there are."""
        codes = [(email, code) for email, (code, _) in (await self.sink.taken()).items() if email in self.answered]
        self.answered = {}

        async def ask(connection: Connection, number: int) -> Answer:
            email, code = codes[number]
            basic = base64.b64encode(f"{email}:{PASSWORD}".encode()).decode()
            body = json.dumps({"code": code}).encode()
            return await connection.request("POST", "/api/v1/users/activate", body, f"Authorization: Basic {basic}\r\n")

        return ask, len(codes)

    async def mailed(self, count: int) -> None:
        """Return once so many mails are accepted; ends the run when that takes too long."""
        async with asyncio.timeout(MAILS_SECONDS):
            while (await self.service.metrics())["business_metrics"]["mails_accepted"] < count:  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.05)  # between looks at the metrics

    async def accepted(self) -> int:
        """Return how many mails have been accepted."""
        return (await self.service.metrics())["business_metrics"]["mails_accepted"]

    async def measured(self, clients: int, count: int, ask: Ask, *, mails: bool) -> tuple[Load, dict[str, float]]:
        """Return what `clients` saw of `count` requests, and the CPU milliseconds of each, with its mail, by role."""
        accepted = await self.accepted() if mails else 0
        before = cpu_seconds(self.service.pid)
        load = await closed_loop(self.service.connections(clients), count, ask)
        if mails:
            await self.mailed(accepted + count)
        after = cpu_seconds(self.service.pid)
        return load, {role: (after[role] - before.get(role, 0.0)) * 1000 / count for role in ROLES if role in after}
