from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio
import pytest
import redis

from service.mail.worker import Listener, wakeup_broker
from service.redis.client import Redis
from service.redis.wakeups import STREAM, STREAM_LENGTH, TASK, TaskiqWakeups, task_entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.servers.valkey import ValkeyServer

PATIENCE = 15.0


class Ears:
    """Listens as the mail worker does, and lets a test wait for wake-ups; a sender with it."""

    def __init__(self, url: str, access: Redis) -> None:
        self.access = access
        self.wakeups = TaskiqWakeups(access)
        self.finish = asyncio.Event()
        self.listener = Listener(partial(wakeup_broker, url, self.wake))
        self.heard = 0
        self._changed = anyio.Event()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, before: int = 0) -> AsyncIterator[Ears]:
        """Listen around the body; so many wake-ups are sent before it begins."""
        async with Redis.open(url) as access, anyio.create_task_group() as group:
            ears = cls(url, access)
            if before:
                await ears.wakeups.wake([uuid4() for _ in range(before)])
            group.start_soon(ears.listener.run, ears.finish)
            yield ears
            ears.finish.set()

    def wake(self) -> None:
        """Note a wake-up."""
        self.heard += 1
        self._changed.set()

    async def hears(self, count: int) -> None:
        """Wait until so many wake-ups have come."""
        with anyio.fail_after(PATIENCE):
            while self.heard < count:
                self._changed = anyio.Event()
                await self._changed.wait()

    async def hears_again(self) -> None:
        """Send wake-ups until one more has come."""
        wanted = self.heard + 1
        with anyio.fail_after(PATIENCE):
            while self.heard < wanted:
                await self.wakeups.wake([uuid4()])
                with anyio.move_on_after(0.5):
                    await self.hears(wanted)


def on_asyncio(test: Callable[[], Awaitable[None]]) -> None:
    """Run the body of a test where Taskiq lives."""

    async def in_time() -> None:
        with anyio.fail_after(4 * PATIENCE):
            await test()

    anyio.run(in_time, backend="asyncio")


def test_the_entry_is_byte_for_byte_what_taskiq_writes(valkey: str) -> None:
    """Taskiq reads it as a call of the task with the mail's id; a release that changes its format turns this red."""
    formatter = wakeup_broker(valkey, lambda: None).formatter
    mail = uuid4()
    message = formatter.loads(task_entry(mail))
    assert (message.task_name, message.args, message.kwargs, message.labels) == (TASK, [str(mail)], {}, {})
    assert formatter.dumps(message).message == task_entry(mail)


def test_wake_ups_reach_the_worker_and_an_idle_one_ends_at_once(valkey: str) -> None:
    """Those too that came before it first listened; one stands for all that wait. Ending waits for no blocking read."""

    async def body() -> None:
        async with Ears.open(valkey, before=20) as ears:
            await ears.hears(1)
            await ears.wakeups.wake([uuid4()])
            await ears.hears(2)
            began = anyio.current_time()
        assert anyio.current_time() - began < 1.5
        assert ears.heard == 2

    on_asyncio(body)


def test_a_wiped_or_killed_redis_is_listened_to_again(own_valkey: ValkeyServer) -> None:
    """The group is made anew; wake-ups into the void are harmless."""

    async def body() -> None:
        async with Ears.open(own_valkey.url, before=1) as ears:
            await ears.hears(1)
            await ears.access.call(redis.Redis.flushall)
            await ears.hears_again()
            own_valkey.kill()
            for _ in range(5):
                await ears.wakeups.wake([uuid4()])
            own_valkey.start()
            await ears.hears_again()

    on_asyncio(body)


@pytest.mark.parametrize(
    "entry",
    [{"other": "field"}, {"data": "no JSON"}, {"data": task_entry(UUID(int=0)).replace(TASK.encode(), b"other.task")}],
)
def test_an_entry_of_another_program_stops_no_wake_ups(valkey: str, entry: dict[str, str]) -> None:
    """Without Taskiq's field, without its format, or for another task: at most what was read with it is lost."""

    async def body() -> None:
        async with Ears.open(valkey) as ears:
            await ears.access.call(lambda client: client.xadd(STREAM, entry))  # type: ignore[arg-type]  # redis-py's dict
            await ears.hears_again()

    on_asyncio(body)


def test_the_stream_stays_bounded_without_a_worker(valkey: str) -> None:
    """Wake-ups that nobody reads do not grow for ever."""

    async def body() -> None:
        async with Redis.open(valkey) as access:
            for _ in range(30):
                await TaskiqWakeups(access).wake([uuid4() for _ in range(500)])
            length: Any = await access.call(lambda client: client.xlen(STREAM))
            assert length < STREAM_LENGTH + 500

    on_asyncio(body)


def test_api_workers_do_not_import_taskiq() -> None:
    """Waking costs no import of Taskiq or its HTTP client; the languages of mails cost neither."""
    program = "import sys, service.redis.wakeups, service.mail.message; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"taskiq", "taskiq_redis", "aiohttp", "aiosmtplib"} & set(modules)
