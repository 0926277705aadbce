"""The mail worker's process: Taskiq receives the wake-ups, `Delivery` sends what is owed. It runs on asyncio."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import uuid4

import anyio
from loguru import logger
from redis.asyncio import Redis
from redis.exceptions import ResponseError
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker

from actors.delivery import GATHER_SECONDS, Delivery
from actors.domain.code import Keyring
from actors.domain.mail import Outcome
from actors.domain.totals import WorkerReport
from actors.kit.mailbox import MachineError
from service import logging
from service.mail.smtp import LONGEST_DIALOGUE_SECONDS
from service.mail.transport import open_transport
from service.postgres.ids import uuid7
from service.postgres.mails import PostgresMailQueue
from service.postgres.metrics import PostgresMetrics
from service.postgres.pool import Postgres
from service.redis.client import refusal
from service.redis.wakeups import STREAM, STREAM_LENGTH, TASK
from service.telemetry.runtime import LOG_LINES_DROPPED
from service.telemetry.tracing import tracing

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    from actors.domain.mail import ClaimedMail, Result
    from service.embedded.servers import Servers
    from service.mail.transport import MailTransport
    from service.settings import Settings

    Heartbeat = Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

GROUP = "mail"
BLOCK_MILLISECONDS = 2000
READ_COUNT = 1000  # wake-ups at once, of which one serves for all
TASKS = 16  # of Taskiq's at once; each only wakes
RETRY_SECONDS = 1.0  # between connections while Redis is away
DISCONNECT_SECONDS = 0.1  # after the receiver was told to end; mostly it has by then
STEADY_SECONDS = 5.0  # a connection that holds for so long is back; a shorter one may be a server that refuses to read
COUNT_SECONDS = 1.0  # between looks for lost log lines
OUTCOMES = {  # how an outcome is logged; others are let go
    Outcome.ACCEPTED: ("INFO", "mail accepted"),
    Outcome.DEFERRED: ("INFO", "mail deferred"),
    Outcome.DEAD: ("WARNING", "mail dead"),
}
CHANCE = random.SystemRandom().random


def run(settings: Settings, servers: Servers, heartbeat: Heartbeat | None = None) -> None:
    """Deliver owed mails until SIGTERM, SIGINT or SIGHUP, then finish what is in hand, within the grace, and return.

    Works on while Redis, Postgres or the mail server is away. `heartbeat` runs the work while it shows that the loop
    goes on. Raises SettingsError, before anything is opened, for settings that could make no mail.
    """
    transport = open_transport(settings, servers.mail_url)
    writer = logging.configure(settings, "mail")
    options = {"use_uvloop": settings.loop != "asyncio"}  # Taskiq knows no other loop than asyncio's
    work = partial(_work, settings, servers, transport, lambda: writer.dropped)
    try:
        anyio.run(partial(heartbeat, work) if heartbeat else work, backend="asyncio", backend_options=options)
    finally:
        writer.stop()


async def _work(
    settings: Settings,
    servers: Servers,
    opening: AbstractAsyncContextManager[MailTransport],
    lost_lines: Callable[[], int],
) -> None:
    worker = f"mail@{socket.gethostname()}.{uuid4().hex[:8]}"
    endings, grace = _endings(), settings.grace_seconds
    with anyio.open_signal_receiver(*endings) as signals:
        async with (
            tracing(worker) as traces,
            Postgres.open(servers.database_url) as postgres,
            opening as transport,
            anyio.create_task_group() as aside,
        ):
            aside.start_soon(_count_lost_lines, PostgresMetrics(postgres), worker, lost_lines)
            delivery = Delivery(
                PostgresMailQueue(postgres, settings.code_policy, worker),
                transport,
                Keyring(servers.code_keys, settings.code_digits),
                Report(),
                life_needed=life_needed(settings),
                new_id=uuid7,
                chance=CHANCE,
                trace=traces.mail,
            )
            await _deliver(delivery, Listener(partial(wakeup_broker, servers.redis_url, delivery.wake)), signals, grace)
            aside.cancel_scope.cancel()
    for ending in endings:
        signal.signal(ending, signal.SIG_IGN)  # a second one must not kill what ends in order
    logger.info("mail worker stopped")


async def _deliver(
    delivery: Delivery, listener: Listener, signals: AsyncIterator[signal.Signals], grace: float
) -> None:
    """Deliver until a signal comes, then finish what is in hand."""
    finish = asyncio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(delivery.run)
        group.start_soon(listener.run, finish)
        logger.info("mail worker started")
        async for _ in signals:
            break
        logger.info("mail worker stops", in_hand=delivery.in_hand)
        delivery.close()
        finish.set()
        group.cancel_scope.deadline = anyio.current_time() + grace


def life_needed(settings: Settings) -> float:
    """Return the seconds of its cap that a code needs when its mail leaves: its minute after the longest dialogue.

    Where the cap hardly exceeds the minute the dialogue gets half of the difference, so that a new code can leave.
    """
    spare = settings.code_max_age_seconds - settings.code_ttl_seconds
    return settings.code_ttl_seconds + min(LONGEST_DIALOGUE_SECONDS, spare / 2)


def _endings() -> list[signal.Signals]:
    """Return the signals that end it in order: a reload or a closed terminal too, unless `nohup` has it stay."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


async def _count_lost_lines(metrics: PostgresMetrics, worker: str, lost_lines: Callable[[], int]) -> NoReturn:
    """Write to the metrics how many log lines were lost, when it is more; until cancelled."""
    written = 0
    while True:
        await anyio.sleep(COUNT_SECONDS)
        if (lost := lost_lines()) > written:
            with suppress(MachineError):  # written the next time
                await metrics.write(WorkerReport(worker, lost, {LOG_LINES_DROPPED: lost}, leaving=True))
                written = lost


class Report:
    """Logs deliveries: ids, outcomes and reasons in words of our own, nothing that a person typed."""

    def delivered(self, mail: ClaimedMail, result: Result) -> None:
        """Report what became of a mail."""
        trace = (mail.traceparent or "").split("-")[1:2]  # W3C: version-trace-parent-flags
        log = logger.bind(mail=mail.id, tries=mail.tries, kind=mail.kind, trace_id=trace[0] if trace else None)
        if result.error is not None:
            log.opt(exception=result.error).error("a mail failed in the worker's own program")
        if result.reason:
            log = log.bind(reason=result.reason)
        log.log(*OUTCOMES.get(result.outcome, ("DEBUG", f"mail let go: {result.outcome}")))

    def server(self, failure: str | None, seconds: float) -> None:
        """Warn that no mail can be sent, or log that it is over."""
        if failure is None:
            logger.info("mail server available again", seconds=round(seconds))
        elif seconds:
            logger.warning("mail server still unavailable", reason=failure, seconds=round(seconds))
        else:
            logger.warning("mail server unavailable", reason=failure)

    def queue(self, failure: MachineError | None) -> None:
        """Warn that Postgres does not answer, or log that it is over."""
        if failure is None:
            logger.info("the mail queue answers again")
        else:
            logger.warning("the mail queue does not answer; asking again every second", error=type(failure).__name__)


class WakeupBroker(RedisStreamBroker):
    """Reads wake-ups that need no acknowledgement: the database knows what is owed, a lost one costs a second.

    As inherited each read is followed by a lock, a search for orphans and an acknowledgement through a client of its
    own for each entry: six round trips where one does, half of the CPU time of a mail.
    """

    async def _declare_consumer_group(self) -> None:
        """Make the group, unless it is there; as inherited whatever Redis refuses is taken for that."""
        async with Redis(connection_pool=self.connection_pool) as client:
            try:
                await client.xgroup_create(self.queue_name, self.consumer_group_name, self.consumer_id, mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    async def listen(self) -> AsyncGenerator[bytes, None]:  # type: ignore[override]  # the receiver takes both
        """Yield one message for all that a read has found: one claim serves them all, and a task costs half a mail.

        What comes within GATHER_SECONDS waits for the next read, as Delivery would have it wait.
        """
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
                    yield entries[-1][1][b"data"]
                    await anyio.sleep(GATHER_SECONDS)


def wakeup_broker(url: str, wake: Callable[[], None], stream: str = STREAM) -> WakeupBroker:
    """Return a broker for one connection, whose one task calls `wake`; it connects when it is started."""
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

    async def deliver(_mail_id: str) -> None:
        """Wake and return: `Delivery` owns the mail, its lease and its retries."""
        wake()

    broker.register_task(deliver, task_name=TASK)
    return broker


class Listener:
    """Receives wake-ups through outages, restarts and wipes of Redis; none of them ends it.

    `build` gives a new broker for each connection: after an error nothing of the old one is trusted.
    """

    def __init__(self, build: Callable[[], RedisStreamBroker]) -> None:
        self._build = build
        self._failure = ""  # the last one since wake-ups came

    async def run(self, finish: asyncio.Event) -> None:
        """Listen until `finish` is set."""
        while not finish.is_set():
            try:
                await self._connection(finish)
            except* Exception as errors:  # noqa: BLE001 - mails leave without wake-ups: nothing here may end the worker
                if not finish.is_set():
                    self._failed(errors)
            with anyio.move_on_after(RETRY_SECONDS):
                await finish.wait()

    async def _connection(self, finish: asyncio.Event) -> None:
        broker = self._build()
        receiver = Receiver(broker, max_async_tasks=TASKS, run_startup=False)
        try:
            await broker.startup()
            async with anyio.create_task_group() as group:
                group.start_soon(self._steady)
                group.start_soon(_disconnect, broker, finish)
                await receiver.listen(finish)
                group.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(1):
                await broker.shutdown()

    async def _steady(self) -> None:
        await anyio.sleep(STEADY_SECONDS)
        if self._failure:
            logger.info("wake-ups are back")
        self._failure = ""

    def _failed(self, errors: BaseExceptionGroup[Exception]) -> None:
        error: Exception | BaseExceptionGroup[Exception] = errors
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        reply, kind = refusal(error), type(error).__name__
        if self._failure == (reply or kind):
            return
        self._failure = reply or kind
        if reply:
            logger.warning("no wake-ups: Redis refuses to work for us; sweeping instead", reply=reply)
        else:
            logger.warning("no wake-ups: Redis is away; sweeping instead", error=kind)


async def _disconnect(broker: RedisStreamBroker, finish: asyncio.Event) -> None:
    """Cut the connections soon after `finish`: an idle read may swallow the receiver's cancellation and never end."""
    await finish.wait()
    while True:
        await anyio.sleep(DISCONNECT_SECONDS)
        await broker.connection_pool.disconnect()
