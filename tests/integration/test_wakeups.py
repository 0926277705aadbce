from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import pytest
import redis

from service.adapters.redis_client import Redis
from service.adapters.taskiq_wakeups import STREAM_LENGTH, TASK, TaskiqWakeups, wire
from service.mailer.broker import Listener, wakeup_broker
from service.mailer.tasks import register
from tests.servers.own_redis import OwnRedis

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from taskiq_redis import RedisStreamBroker

PATIENCE = 15.0


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[OwnRedis]:
    """Run a real Valkey around the test."""
    with OwnRedis(tmp_path) as server:
        yield server


def on_asyncio(test: Callable[[], Awaitable[None]]) -> None:
    """Run the body of a test where Taskiq lives."""
    anyio.run(_in_time, test, backend="asyncio")


async def _in_time(test: Callable[[], Awaitable[None]]) -> None:
    with anyio.fail_after(4 * PATIENCE):
        await test()


class Bell:
    """Listens as the mail worker does and lets a test wait for what rang."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.rung: list[UUID] = []
        self.stirred = anyio.Event()

    def ring(self, mail_id: UUID) -> None:
        """Note a ring."""
        self.rung.append(mail_id)
        self.stirred.set()

    def broker(self) -> RedisStreamBroker:
        """Build the worker's broker."""
        broker = wakeup_broker(self.url)
        register(broker, self.ring)
        return broker

    async def hear(self, count: int) -> None:
        """Wait until so many have rung."""
        with anyio.fail_after(PATIENCE):
            while len(self.rung) < count:
                self.stirred = anyio.Event()
                await self.stirred.wait()


async def until_heard(bell: Bell, wakeups: TaskiqWakeups) -> None:
    """Ring until one more is heard."""
    wanted = len(bell.rung) + 1
    with anyio.fail_after(PATIENCE):
        while len(bell.rung) < wanted:
            await wakeups.ring([uuid4()])
            with anyio.move_on_after(0.5):
                await bell.hear(wanted)


def test_taskiq_reads_what_the_wakeups_wrote(valkey: OwnRedis) -> None:
    """The broker's own formatter decodes the entry to a call of the task with the mail's id and nothing else."""
    mail_id = uuid4()
    message = wakeup_broker(valkey.url).formatter.loads(wire(mail_id))
    assert (message.task_name, message.args, message.kwargs, message.labels) == (TASK, [str(mail_id)], {}, {})


def test_the_entry_is_byte_for_byte_what_taskiq_writes(valkey: OwnRedis) -> None:
    """A new release of Taskiq that changes its format turns this red."""
    broker = wakeup_broker(valkey.url)
    mail_id = uuid4()
    assert broker.formatter.dumps(broker.formatter.loads(wire(mail_id))).message == wire(mail_id)


def test_rings_reach_the_worker(valkey: OwnRedis) -> None:
    """What one process rings another hears, those included that came before it first listened."""

    async def body() -> None:
        bell, finish = Bell(valkey.url), asyncio.Event()
        ids = [uuid4() for _ in range(40)]
        async with Redis.open(valkey.url) as access, anyio.create_task_group() as group:
            wakeups = TaskiqWakeups(access)
            await wakeups.ring(ids[:20])
            group.start_soon(Listener(bell.broker).run, finish)
            await wakeups.ring(ids[20:])
            await bell.hear(40)
            finish.set()
        assert sorted(bell.rung) == sorted(ids)

    on_asyncio(body)


def test_an_idle_listener_ends_at_once(valkey: OwnRedis) -> None:
    """Finishing does not wait for a message, nor for a blocking read to time out."""

    async def body() -> None:
        bell, finish = Bell(valkey.url), asyncio.Event()
        async with Redis.open(valkey.url) as access, anyio.create_task_group() as group:
            group.start_soon(Listener(bell.broker).run, finish)
            await TaskiqWakeups(access).ring([uuid4()])
            await bell.hear(1)
            began = anyio.current_time()
            finish.set()
            group.start_soon(anyio.sleep, 0)
        assert anyio.current_time() - began < 1.5

    on_asyncio(body)


def test_a_wiped_redis_is_listened_to_again(valkey: OwnRedis) -> None:
    """The group that a wipe took away is made anew, and what rang meanwhile is heard."""

    async def body() -> None:
        bell, finish = Bell(valkey.url), asyncio.Event()
        async with Redis.open(valkey.url) as access, anyio.create_task_group() as group:
            wakeups = TaskiqWakeups(access)
            group.start_soon(Listener(bell.broker).run, finish)
            await wakeups.ring([uuid4()])
            await bell.hear(1)
            await access.call(redis.Redis.flushall)
            await wakeups.ring([uuid4()])
            await bell.hear(2)
            finish.set()

    on_asyncio(body)


def test_a_killed_redis_is_listened_to_again_and_rings_into_the_void_are_harmless(valkey: OwnRedis) -> None:
    """An outage ends neither the listener nor a ringer; after it both work."""

    async def body() -> None:
        bell, finish = Bell(valkey.url), asyncio.Event()
        async with Redis.open(valkey.url) as access, anyio.create_task_group() as group:
            wakeups = TaskiqWakeups(access)
            group.start_soon(Listener(bell.broker).run, finish)
            await wakeups.ring([uuid4()])
            await bell.hear(1)
            valkey.kill()
            for _ in range(5):
                await wakeups.ring([uuid4()])
            valkey.start()
            await until_heard(bell, wakeups)
            finish.set()

    on_asyncio(body)


def test_an_entry_of_somebody_else_stops_no_wakeups(valkey: OwnRedis) -> None:
    """An entry without Taskiq's field, or with a bad id, ends nothing; at most the rings read with it are lost."""

    async def body() -> None:
        bell, finish = Bell(valkey.url), asyncio.Event()
        async with Redis.open(valkey.url) as access, anyio.create_task_group() as group:
            wakeups = TaskiqWakeups(access)
            group.start_soon(Listener(bell.broker).run, finish)
            await access.call(lambda client: client.xadd("vestibule:wakeups", {"other": "field"}))
            await access.call(lambda client: client.xadd("vestibule:wakeups", {"data": "no JSON"}))
            bad = wire(UUID(int=0)).replace(b"00000000-", b"z")
            await access.call(lambda client: client.xadd("vestibule:wakeups", {"data": bad}))
            await until_heard(bell, wakeups)
            finish.set()

    on_asyncio(body)


def test_the_stream_stays_bounded_without_a_worker(valkey: OwnRedis) -> None:
    """Rings that nobody hears do not grow for ever."""

    async def body() -> None:
        async with Redis.open(valkey.url) as access:
            wakeups = TaskiqWakeups(access)
            for _ in range(30):
                await wakeups.ring([uuid4() for _ in range(500)])
            length: Any = await access.call(lambda client: client.xlen("vestibule:wakeups"))
            assert length < STREAM_LENGTH + 500

    on_asyncio(body)


def test_api_workers_do_not_import_taskiq() -> None:
    """Ringing costs no import of Taskiq or its HTTP client."""
    program = "import sys, service.adapters.taskiq_wakeups; print(*sorted(sys.modules))"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"taskiq", "taskiq_redis", "aiohttp"} & set(modules)
