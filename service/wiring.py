"""The only place where all meet: stores opened, actors started, flows built, everything closed in reverse."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
from loguru import logger

from actors.authentication import Authentication
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.rate_limit import Rule
from actors.domain.totals import Totals, WorkerReport
from actors.domain.user import CodePolicy
from actors.kit.background import BackgroundTasks
from actors.kit.mailbox import MachineError
from actors.kit.supervisor import Supervisor
from actors.limits import ClientLimits, Limits
from actors.metrics_aggregator import MetricsAggregator, ticking
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import Decisions, RateLimiter
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from service.http.app import Parts, build
from service.mail.message import available_locales
from service.passwords import Bcrypt, EmailAddresses, common_passwords
from service.postgres.accounts import PostgresAccounts
from service.postgres.ids import uuid7
from service.postgres.mail_admin import PostgresMailAdmin
from service.postgres.mails import KEPT_DAYS, PostgresMailQueue, purge
from service.postgres.metrics import PostgresMetrics
from service.postgres.pool import Postgres
from service.postgres.rate_limits import PostgresRateLimits
from service.redis.client import Redis
from service.redis.fallback import RateLimitsFallback
from service.redis.metrics import RedisMetrics
from service.redis.rate_limits import RedisRateLimits
from service.redis.wakeups import TaskiqWakeups
from service.telemetry.health import HealthChecks
from service.telemetry.reader import Reader
from service.telemetry.runtime import LOG_LINES_DROPPED, runtime

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
    from contextlib import AbstractContextManager
    from uuid import UUID

    from quart import Quart

    from actors.domain.mail import ClaimedMail
    from actors.kit.mailbox import Address
    from actors.ports import MailQueue, RuntimeStatistics
    from service.embedded.servers import Servers
    from service.settings import Settings

PURGE_SECONDS = 600.0  # an expired key does no harm meanwhile
DAY_SECONDS = 86400
CODES_PER_CLIENT = Rule("codes-client", 3, 3600)  # of one address: a client that asks for more is not its owner


def code_policy(settings: Settings) -> CodePolicy:
    """Return what the operator allows of codes."""
    return CodePolicy(
        attempts=settings.code_attempts,
        ttl_seconds=settings.code_ttl_seconds,
        max_age_seconds=settings.code_max_age_seconds,
        cooldown_seconds=settings.resend_cooldown_seconds,
        budgets=settings.code_limits,
    )


def limits(settings: Settings) -> Limits:
    """Return the limits in force."""
    return Limits(
        register=settings.register_limit,
        activate=settings.activate_limit,
        password=settings.password_limit,
        password_client=settings.password_client_limit,
        basic=settings.basic_limit,
        codes_client=CODES_PER_CLIENT if settings.code_limits else None,
    )


@asynccontextmanager
async def api(
    settings: Settings, servers: Servers, worker: str, lost_lines: Callable[[], int] = lambda: 0
) -> AsyncIterator[tuple[Quart, Callable[[], None]]]:
    """Open everything around the body; give the application and what begins its drain. `lost_lines` counts for the log.

    Starts while Postgres and Redis are away, and serves what can be served. On the way out background tasks end, actors
    drain, metrics are written and pools close. Raises TooManyCrashes, inside an exception group, when an actor keeps
    crashing.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        postgres = await enter(Postgres.open(servers.database_url))
        redis = await enter(Redis.open(servers.redis_url))
        aside = await enter(anyio.create_task_group())
        stack.callback(aside.cancel_scope.cancel)

        policy, keyring = code_policy(settings), Keyring(servers.code_keys, settings.code_digits)
        accounts = PostgresAccounts(postgres, policy, worker)
        rate_limits = RateLimitsFallback(RedisRateLimits(redis), PostgresRateLimits(postgres))
        lasting, live = PostgresMetrics(postgres), RedisMetrics(redis)
        totals = Totals(f"{worker}.{uuid4().hex[:8]}")  # one run's totals are never another's
        supervisor, decisions, noticed = Supervisor(_report_crash), Decisions(), Counter[str]()

        def statistics() -> RuntimeStatistics:
            return runtime(supervisor, decisions, postgres, redis, {**noticed, LOG_LINES_DROPPED: lost_lines()})

        strict = settings.enumeration == "strict"
        metrics = supervisor.start(lambda: MetricsAggregator(totals, live, lasting, statistics))
        limiter = supervisor.start(lambda: RateLimiter(rate_limits, decisions))
        hasher = await enter(_hashing(settings, supervisor, limiter))
        registry = supervisor.start(lambda: UserRegistry(accounts, policy, strict=strict))
        issuer = supervisor.start(lambda: CodeIssuer(accounts, TaskiqWakeups(redis)))
        await enter(supervisor.running())
        aside.start_soon(ticking, metrics)
        aside.start_soon(rate_limits.cleaning)
        aside.start_soon(_purging, postgres)

        background = await enter(BackgroundTasks.open())
        addresses, client_limits = EmailAddresses(), ClientLimits(limiter, limits(settings), keyring)
        signup = SignUp(
            registry=registry,
            hasher=hasher,
            issuer=issuer,
            limits=client_limits,
            authentication=Authentication(registry=registry, hasher=hasher, limits=client_limits, addresses=addresses),
            keyring=keyring,
            policy=policy,
            addresses=addresses,
            common_passwords=common_passwords(),
            new_id=uuid7,
            strict=strict,
        )
        health = HealthChecks(postgres, redis)
        app = build(
            Parts(
                settings=settings,
                signup=signup,
                background=background,
                metrics=metrics,
                limiter=limiter,
                reader=Reader(totals, live, lasting, lasting, runtime=statistics),
                health=health,
                mail_admin=PostgresMailAdmin(postgres, policy, keyring.signing),
                locales=available_locales(settings),
                noticed=noticed,
            )
        )
        yield app, health.drain


@asynccontextmanager
async def _hashing(settings: Settings, supervisor: Supervisor, limiter: Address) -> AsyncIterator[Address]:
    """Keep as many hash threads as there are cores around the body, behind one PasswordHasher each.

    Blocks for one hash: by its CPU time, times the workers that share the cores, the queue is bounded from the start.
    """
    cores = os.cpu_count() or 1
    async with Bcrypt.open(settings.bcrypt_cost, cores) as bcrypt:
        dummy, cpu_seconds = bcrypt.dummy()
        seconds = cpu_seconds * settings.workers
        yield supervisor.start(
            lambda: PasswordHasher(bcrypt, limiter, cores, dummy, seconds=seconds, chance=random.random), copies=cores
        )


@dataclass(frozen=True, slots=True)
class MailParts:
    """What the mail worker works with; `count` writes its own counters, `trace` surrounds one send."""

    queue: MailQueue
    keyring: Keyring
    new_id: Callable[[], UUID]
    count: Callable[[Mapping[str, int]], Awaitable[None]]
    trace: Callable[[ClaimedMail], AbstractContextManager[object]]


@asynccontextmanager
async def mail(settings: Settings, servers: Servers, worker: str) -> AsyncIterator[MailParts]:
    """Open what the mail worker needs around the body; it starts while PostgreSQL is away."""
    async with Postgres.open(servers.database_url) as postgres:
        metrics, totals = PostgresMetrics(postgres), Totals(worker)

        async def count(counters: Mapping[str, int]) -> None:
            totals.raise_to(counters)
            totals.version += 1
            await metrics.write(WorkerReport(worker, totals.version, totals.totals(), leaving=True))

        yield MailParts(
            queue=PostgresMailQueue(postgres, code_policy(settings), worker),
            keyring=Keyring(servers.code_keys, settings.code_digits),
            new_id=uuid7,
            count=count,
            trace=lambda _: nullcontext(),
        )


async def _purging(postgres: Postgres) -> None:
    """Delete what has expired, now and then, in one of the processes or another."""
    while True:
        await anyio.sleep(PURGE_SECONDS)
        with suppress(MachineError):
            await purge(postgres, uuid7(time.time() - KEPT_DAYS * DAY_SECONDS))


def _report_crash(name: str, error: Exception) -> None:
    logger.bind(actor=name).opt(exception=error).error("an actor crashed and is built anew")
