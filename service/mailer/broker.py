"""The Taskiq broker of the wake-ups, with the settings that its traps ask for, and a listener that outlives Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
from loguru import logger
from redis.asyncio import Redis
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from service.adapters.taskiq_wakeups import STREAM, STREAM_LENGTH

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncGenerator, Callable

GROUP = "mail"
BLOCK_MILLISECONDS = 2000
READ_COUNT = 16  # a worker that dies takes so many with it: their mails are found by the next look into the outbox
RETRY_SECONDS = (0.5, 1.0, 2.0)  # between connections while Redis is away; the last repeats
HANG_UP_SECONDS = 0.1  # after the receiver was told to end; mostly it has by then
STEADY_SECONDS = 5.0  # a connection that holds for so long is back; a shorter one may be a server that refuses to read


class WakeupBroker(RedisStreamBroker):
    """Reads wake-ups that need no acknowledgement: the outbox knows what is owed, a lost one costs a second.

    As inherited each read is followed by a lock, a search for orphans and an acknowledgement through a client of its
    own for each entry: six round trips where one does, half of the CPU time of a mail.
    """

    async def listen(self) -> AsyncGenerator[bytes, None]:  # type: ignore[override]  # the receiver takes both
        """Yield each entry's message once."""
        async with Redis(connection_pool=self.connection_pool) as client:
            while True:
                fetched = await client.xreadgroup(
                    self.consumer_group_name,
                    self.consumer_name,
                    {self.queue_name: ">"},
                    count=self.count,
                    block=self.block,
                    noack=True,
                )
                for _, entries in fetched:
                    for _, entry in entries:
                        yield entry[b"data"]


def wakeup_broker(url: str, stream: str = STREAM) -> WakeupBroker:
    """Return a broker for one spell of listening; it connects when it is started."""
    over_network: dict[str, Any] = {} if url.startswith("unix:") else {"socket_keepalive": True}
    broker = WakeupBroker(
        url,
        queue_name=stream,
        consumer_group_name=GROUP,
        consumer_name=GROUP,  # one for all workers: names of their own would pile up in Redis with every restart
        consumer_id="0",  # "$" would skip what was sent before the group existed, or after a wipe
        xread_block=BLOCK_MILLISECONDS,
        xread_count=READ_COUNT,
        maxlen=STREAM_LENGTH,
        max_connection_pool_size=8,
        socket_timeout=2 * BLOCK_MILLISECONDS / 1000,  # more than the block, or an idle read would be an error
        socket_connect_timeout=1.0,
        **over_network,
    )
    broker.is_worker_process = True
    return broker


class Listener:
    """Receives wake-ups through outages, restarts and wipes of Redis; none of them ends it.

    `build` gives a fresh broker with its tasks for each connection: after an error nothing of the old one is trusted.
    """

    def __init__(self, build: Callable[[], RedisStreamBroker]) -> None:
        self._build = build
        self._failures = 0

    async def run(self, finish: asyncio.Event) -> None:
        """Listen until `finish` is set."""
        while not finish.is_set():
            try:
                await self._connection(finish)
            except* Exception as errors:  # noqa: BLE001 - mails leave without wake-ups: nothing here may end the worker
                if not finish.is_set():
                    self._failed(errors)
            with anyio.move_on_after(RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]):
                await finish.wait()

    async def _connection(self, finish: asyncio.Event) -> None:
        broker = self._build()
        receiver = Receiver(broker, max_async_tasks=READ_COUNT, run_startup=False)
        try:
            await broker.startup()
            async with anyio.create_task_group() as group:
                group.start_soon(self._steady)
                group.start_soon(_hang_up, broker, finish)
                await receiver.listen(finish)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await broker.shutdown()

    async def _steady(self) -> None:
        await anyio.sleep(STEADY_SECONDS)
        if self._failures:
            logger.info("wake-ups are back")
        self._failures = 0

    def _failed(self, errors: BaseExceptionGroup[Exception]) -> None:
        self._failures += 1
        if self._failures == 1:
            logger.warning("wake-ups are away; looking into the outbox instead", error=_first(errors))


async def _hang_up(broker: RedisStreamBroker, finish: asyncio.Event) -> None:
    """Cut the connections soon after `finish`: an idle read may swallow the receiver's cancellation and never end."""
    await finish.wait()
    while True:
        await anyio.sleep(HANG_UP_SECONDS)
        await broker.connection_pool.disconnect()


def _first(errors: BaseExceptionGroup[Exception]) -> str:
    """Name the first error; its text may hold a URL."""
    one: BaseException = errors
    while isinstance(one, BaseExceptionGroup):
        one = one.exceptions[0]
    return type(one).__name__
