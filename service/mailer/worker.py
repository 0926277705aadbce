"""The mail worker's process: the mail room, its rings over Taskiq, and their orderly end. The one home of asyncio."""

from __future__ import annotations

import asyncio
import random
import signal
import socket
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, NoReturn
from uuid import uuid4

import anyio
from loguru import logger

from actors.delivery import Delivery, Outcome
from actors.domain.code import Keyring
from actors.domain.tally import Tally
from actors.kit.mailbox import MachineError
from actors.mail_room import MailRoom
from service import logs
from service.adapters.postgres import Postgres
from service.adapters.postgres_codes import CodePolicy
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.postgres_outbox import PostgresOutbox
from service.machinery import LOG_LINES_DROPPED
from service.mailer.broker import Listener, wakeup_broker
from service.mailer.postman import open_postman
from service.mailer.tasks import register
from service.pulse import beating
from service.servers import code_keys
from service.traceparent import trace_id
from service.tracing.tracing import untraced

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from taskiq_redis import RedisStreamBroker

    from actors.delivery import Delivered
    from actors.mail_ports import Postman
    from actors.metrics_ports import Ledger
    from service.servers import Servers
    from service.settings import Settings
    from service.tracing.tracing import Opening

SENDS = 16  # at once: mail servers take half a second and more for a mail, this process a millisecond
COUNT_SECONDS = 1.0  # between looks for lost log lines, as the ticks of an API worker
CHANCE = random.SystemRandom().random


def run(
    settings: Settings, servers: Servers, tracing: Opening = untraced, channel: socket.socket | None = None
) -> None:
    """Deliver owed mails until SIGTERM, SIGINT or SIGHUP, then finish the sends that run, within the grace, and return.

    Outlives the absence of every server, and beats over the channel to its master. Raises BadSettings, before
    anything is opened, for settings that could make no mail.
    """
    postman = open_postman(settings, servers.mail_url)
    keyring = Keyring(code_keys(settings), settings.code_digits)
    writer = logs.configure(settings, "mail")
    options = {"use_uvloop": settings.loop != "asyncio"}  # Taskiq knows no other loop than asyncio's
    try:
        work = partial(_work, settings, servers, keyring, postman, tracing, lambda: writer.dropped)
        anyio.run(beating, channel, work, backend="asyncio", backend_options=options)
    finally:
        writer.stop()


async def _work(  # noqa: PLR0913, PLR0917 - what a process is given
    settings: Settings,
    servers: Servers,
    keyring: Keyring,
    opening: AbstractAsyncContextManager[Postman],
    tracing: Opening,
    lost_lines: Callable[[], int],
) -> None:
    worker = f"mail@{socket.gethostname()}"
    async with AsyncExitStack() as stack:
        signals = stack.enter_context(anyio.open_signal_receiver(*_endings()))
        traces = await stack.enter_async_context(tracing("mail"))
        postgres = await stack.enter_async_context(Postgres.open(servers.database_url))
        postman = traces.postman(await stack.enter_async_context(opening), servers.mail_url)
        outbox = traces.outbox(PostgresOutbox(postgres, CodePolicy.of(settings), worker))
        delivery = Delivery(
            outbox, postman, keyring, code_ttl_seconds=settings.code_ttl_seconds, chance=CHANCE, new_number=uuid4
        )
        aside = await stack.enter_async_context(anyio.create_task_group())
        stack.callback(aside.cancel_scope.cancel)
        aside.start_soon(delivery.look_out)
        aside.start_soon(_counting, PostgresMetrics(postgres), Tally(f"{worker}.{uuid4().hex[:8]}"), lost_lines)
        room = MailRoom(outbox, traces.delivery(delivery.deliver), Report(), at_once=SENDS, chance=CHANCE)
        finish = asyncio.Event()
        listener = Listener(partial(_broker, servers.redis_url, room))
        async with anyio.create_task_group() as group:
            group.start_soon(room.run)
            group.start_soon(listener.run, finish)
            logger.info("mail worker started")
            async for _ in signals:
                break
            logger.info("mail worker stops", sending=room.delivering)
            room.close()
            finish.set()
            group.cancel_scope.deadline = anyio.current_time() + settings.grace_seconds
        logger.info("mail worker stopped")


def _endings() -> list[signal.Signals]:
    """Return the signals that end it in order: a reload or a closed terminal too, unless `nohup` has it stay."""
    ignored = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [signal.SIGTERM, signal.SIGINT, *([] if ignored else [signal.SIGHUP])]


async def _counting(ledger: Ledger, tally: Tally, lost_lines: Callable[[], int]) -> NoReturn:
    """Enter into the ledger of the metrics how many log lines were lost, whenever it is more; until cancelled.

    Always as a worker that leaves: those that stay are counted as the ones that answer requests.
    """
    entered = 0
    while True:
        await anyio.sleep(COUNT_SECONDS)
        if (lost := lost_lines()) > entered:
            tally.raise_to({LOG_LINES_DROPPED: lost})
            with suppress(MachineError):  # entered the next time
                await ledger.write(tally.report({}, {}, leaving=True))
                entered = lost


def _broker(url: str, room: MailRoom) -> RedisStreamBroker:
    broker = wakeup_broker(url)
    register(broker, room.ring)
    return broker


class Report:
    """Tells in the log what became of mails: ids, outcomes and reply codes, nothing that a person typed."""

    def __init__(self) -> None:
        self._away = False

    def delivered(self, delivered: Delivered) -> None:
        """Tell how a delivery ended."""
        mail = delivered.mail
        told = logger.bind(mail=mail.id, attempt=mail.attempt, kind=mail.kind, trace_id=trace_id(mail.traceparent))
        if delivered.error is not None:
            told.opt(exception=delivered.error).error("a mail broke the worker's program")
        match delivered.outcome:
            case Outcome.ACCEPTED:
                told.info("mail accepted")
            case Outcome.DEFERRED:
                told.warning("mail deferred", reason=delivered.reason)
            case Outcome.DEAD:
                told.warning("mail dead", reason=delivered.reason)
            case Outcome.NEEDLESS | Outcome.LOST | Outcome.UNSETTLED:
                told.info("mail let go", outcome=delivered.outcome, reason=delivered.reason)
        self._away = False

    def unreachable(self, error: MachineError) -> None:
        """Tell once per outage that the outbox cannot be asked."""
        if not self._away:
            logger.warning("the outbox does not answer; asking again every second", error=type(error).__name__)
        self._away = True
