"""Two hundred registrations at once, at the everyday cost of a hash: bounded, told so at once, and in nobody's way."""

from __future__ import annotations

import asyncio
import re
import statistics
import time
from collections import defaultdict
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING, Final

import pytest

from tests.e2e.instance import HOST, running
from tests.e2e.post import CaughtMails, Post
from tests.e2e.world import Person, Place
from tests.faults.hostile.conftest import OFF, unharmed
from tests.faults.hostile.raw import LIVEZ, register
from tests.faults.outage import told
from tests.servers.waiting import patience

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

CROWD: Final = 200
SECONDS: Final = 12.0
OWNERS: Final = 5
SETTINGS: Final = {**dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "BCRYPT_COST": "12", "CODE_TTL_SECONDS": "600"}
RETRY: Final = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)
Seen = dict[str, list[float]]


async def ask(port: int, what: str, request: bytes, seen: Seen) -> tuple[int, int]:
    """Ask over a new connection; return the status and the seconds after which to try again."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    wait = RETRY.search(head)
    seen[f"{what} {head[9:12].decode()}"].append(time.perf_counter() - began)
    return int(head[9:12]), int(wait[1]) if wait else 0


async def one_of_the_crowd(port: int, seen: Seen, until: float) -> None:
    """Register again and again, and wait as told when there is no room."""
    while time.perf_counter() < until:
        status, wait = await ask(port, "register", register(f"{token_hex(8)}@example.com"), seen)
        assert (status, wait > 0) in {(201, False), (503, True)}
        await asyncio.sleep(wait)  # as long as the service said, which is what is measured


async def bystander(port: int, seen: Seen, until: float) -> None:
    """Ask for nothing in particular."""
    while time.perf_counter() < until:
        assert (await ask(port, "livez", LIVEZ, seen))[0] == 200
        await asyncio.sleep(0.02)  # a bystander, no second crowd


async def owner(person: Person, code: str, seen: Seen) -> None:
    """Repeat the registration and activate, in the middle of it."""
    began = time.perf_counter()
    assert (await asyncio.to_thread(person.register, Idempotency_Key=person.email[4:16])).outcome == "201"
    assert (await asyncio.to_thread(person.activate, code)).outcome == "200"
    seen["owner"].append(time.perf_counter() - began)


async def flood(port: int, owners: dict[str, Person]) -> Seen:
    """Let the crowd come, and owners and a bystander into it."""
    seen: Seen = defaultdict(list)
    until = time.perf_counter() + SECONDS
    async with asyncio.TaskGroup() as group:
        group.create_task(bystander(port, seen, until))
        for _ in range(CROWD):
            group.create_task(one_of_the_crowd(port, seen, until))
        for code, person in owners.items():
            await asyncio.sleep(1.5)  # spread over the flood, one owner after the other
            group.create_task(owner(person, code, seen))
    return seen


def memory(service: Instance, line: str) -> int:
    """Return what the workers take (`VmRSS`) or have taken at most (`VmHWM`), in KiB."""
    statuses = [Path(f"/proc/{pid}/status").read_text(encoding="ascii") for pid in service.titled("api worker")]
    return sum(int(re.findall(rf"{line}:\s+(\d+)", status)[0]) for status in statuses)


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_a_flood_of_registrations_is_turned_away_at_once(tmp_path: Path, loop: str) -> None:
    """Who finds no room hears it before anything is hashed, memory stays flat, and owners are served meanwhile."""
    with running(tmp_path, loop, SETTINGS) as service, unharmed(service):
        place = Place(service, Post(CaughtMails(service.data_dir / "mails"), service.ledger))
        people = [place.person() for _ in range(OWNERS)]
        for person in people:
            assert person.register(Idempotency_Key=person.email[4:16]).outcome == "201"
        owners, before = {person.code(): person for person in people}, memory(service, "VmRSS")
        seen = asyncio.run(flood(service.port, owners))
        grown = memory(service, "VmHWM") - before
        told(loop=loop, grown=grown, **{f"median {what}": statistics.median(times) for what, times in seen.items()})
        assert len(seen["register 503"]) > CROWD // 2
        hashed = statistics.median(seen["register 201"])  # what is cheap must not wait as what is hashed does
        assert statistics.median(seen["register 503"]) < hashed / 10
        assert statistics.median(seen["livez 200"]) < hashed / 20
        assert statistics.quantiles(seen["livez 200"], n=100)[98] < hashed / 4
        assert len(seen["owner"]) == OWNERS
        assert max(seen["owner"]) < patience(4.0)
        assert max(seen["register 201"]) < patience(5.0)
        assert grown < 60 * 2**10
