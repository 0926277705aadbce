"""Two hundred registrations at once, at the everyday cost of a hash: bounded, told so at once, and in nobody's way."""

from __future__ import annotations

import asyncio
import json
import re
import statistics
import time
from base64 import b64encode
from collections import defaultdict
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import psutil
import pytest

from service.embedded.mail_catcher import list_mails
from tests.e2e.instance import running
from tests.faults.hostile.conftest import OFF, unharmed
from tests.faults.hostile.raw import HOST, LIVEZ, PASSWORD, REGISTER, register
from tests.servers.waiting import patience, titled, wait_for

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.instance import Instance

CROWD: Final = 200
SECONDS: Final = 12.0
OWNERS: Final = 5
SETTINGS: Final = {
    **dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "BCRYPT_COST": "12", "CODE_TTL_SECONDS": "600",
}  # fmt: skip
CODE_LINE: Final = re.compile(r"^\s*(\d{6})\s*$", re.MULTILINE)
RETRY: Final = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)
LENGTH: Final = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


@dataclass
class Seen:
    """How long answers took, by what was asked and their status."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    most_memory: int = 0

    def table(self) -> list[str]:
        """Return a line for each kind of answer, in milliseconds."""
        lines = []
        for what, times in self.seconds.items():
            spots = sorted(times)
            marks = [spots[min(len(spots) - 1, int(len(spots) * part))] * 1000 for part in (0.5, 0.95, 0.99, 1.0)]
            lines.append(
                f"{what}: {len(spots)}, p50 {marks[0]:.0f}, p95 {marks[1]:.0f}, p99 {marks[2]:.0f}, max {marks[3]:.0f}"
            )
        return lines

    def p99(self, what: str) -> float:
        """Return the 99th percentile."""
        return statistics.quantiles(self.seconds[what], n=100)[98]


class Connection:
    """One kept connection that notes what it hears."""

    def __init__(self, port: int, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.port, self.seen, self.reader, self.writer = port, seen, reader, writer

    @classmethod
    async def open(cls, port: int, seen: Seen) -> Connection:
        """Connect."""
        return cls(port, seen, *await asyncio.open_connection(HOST, port))

    async def ask(self, what: str, request: bytes) -> tuple[int, int]:
        """Return the status and the seconds after which to try again."""
        began = time.perf_counter()
        self.writer.write(request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        length, wait = LENGTH.search(head), RETRY.search(head)
        await self.reader.readexactly(int(length[1]) if length else 0)
        self.seen.seconds[f"{what} {head[9:12].decode()}"].append(time.perf_counter() - began)
        return int(head[9:12]), int(wait[1]) if wait else 0


async def one_of_the_crowd(port: int, seen: Seen, until: float) -> None:
    """Register again and again; wait as told when there is no room, and come back over a new connection."""
    while time.perf_counter() < until:
        connection = await Connection.open(port, seen)
        status, wait = await connection.ask("register", register(f"{token_hex(8)}@example.com"))
        connection.writer.close()
        assert status in {201, 503}
        assert (status == 503) == (wait > 0)
        await asyncio.sleep(wait)  # as long as the service said, which is what is measured


async def weigh(seen: Seen, until: float, pids: list[int]) -> None:
    """Look at the workers' memory, now and then."""
    while time.perf_counter() < until:
        seen.most_memory = max(seen.most_memory, sum(psutil.Process(pid).memory_info().rss for pid in pids))
        await asyncio.sleep(0.5)  # between two weighings


async def bystander(connection: Connection, until: float) -> None:
    """Ask for nothing in particular."""
    while time.perf_counter() < until:
        assert (await connection.ask("livez", LIVEZ))[0] == 200
        await asyncio.sleep(0.02)  # a bystander, no second crowd


async def owner(connection: Connection, email: str, code: str) -> None:
    """Repeat the registration and activate, in the middle of it."""
    assert (await connection.ask("repeat", register(email, key_of(email))))[0] == 201
    basic = b64encode(f"{email}:{PASSWORD}".encode())
    body = json.dumps({"code": code}).encode()
    head = REGISTER.replace(b"/register", b"/activate") + b"Authorization: Basic " + basic
    request = head + f"\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    assert (await connection.ask("activate", request))[0] == 200


async def flood(service: Instance, codes: dict[str, str]) -> Seen:
    """Let the crowd come, and owners and a bystander into it."""
    seen = Seen()
    until = time.perf_counter() + SECONDS
    async with asyncio.TaskGroup() as group:
        group.create_task(weigh(seen, until, titled(service.process.pid, "api worker")))
        for _ in range(2):
            connection = await Connection.open(service.port, seen)
            group.create_task(bystander(connection, until))
        for _ in range(CROWD):
            group.create_task(one_of_the_crowd(service.port, seen, until))
        for email, code in codes.items():
            await asyncio.sleep(1.5)  # spread over the flood, one owner after the other
            group.create_task(owner(await Connection.open(service.port, seen), email, code))
    return seen


def key_of(email: str) -> str:
    """Return the header under which an owner registers."""
    return f"Idempotency-Key: {email.partition('@')[0]}"


async def registered(service: Instance) -> list[str]:
    """Register the owners, and let each worker hash once."""
    emails = [f"{token_hex(8)}@example.com" for _ in range(OWNERS)]
    for email in emails:
        connection = await Connection.open(service.port, Seen())
        assert (await connection.ask("register", register(email, key_of(email))))[0] == 201
    return emails


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_a_flood_of_registrations_is_turned_away_at_once(tmp_path: Path, loop: str) -> None:
    """Who finds no room hears it before anything is hashed, memory stays flat, and owners are served meanwhile."""
    with running(tmp_path, loop, SETTINGS) as service, unharmed(service):
        emails = asyncio.run(registered(service))
        mails = service.data_dir / "mails"
        wait_for(lambda: {mail.to for mail in list_mails(mails, OWNERS)} >= set(emails), "the owners' mails")
        found = {mail.to: CODE_LINE.search(mail.text) for mail in list_mails(mails, OWNERS)}
        before = sum(psutil.Process(pid).memory_info().rss for pid in titled(service.process.pid, "api worker"))
        seen = asyncio.run(flood(service, {email: code[1] for email, code in found.items() if code}))
        print(f"{loop}: memory {(seen.most_memory - before) >> 20:+} MiB", *seen.table(), sep="\n  ")  # noqa: T201 - with -s
        assert len(seen.seconds["register 503"]) > CROWD // 2
        assert statistics.median(seen.seconds["register 503"]) < patience(0.1)
        assert seen.p99("livez 200") < patience(0.1)
        assert max(seen.seconds["activate 200"] + seen.seconds["repeat 201"]) < patience(2.0)
        assert len(seen.seconds["activate 200"]) == OWNERS
        assert max(seen.seconds["register 201"]) < patience(5.0)
        assert seen.most_memory - before < 60 * 2**20
