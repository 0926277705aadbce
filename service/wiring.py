"""The only place where all meet: stores opened, actors started, flows built, everything closed in reverse."""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

import anyio
from loguru import logger

from actors.authentication import Authentication
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.rate_limit import Rule
from actors.domain.totals import Totals
from actors.kit.background import BackgroundTasks
from actors.kit.mailbox import MachineError
from actors.kit.supervisor import Supervisor
from actors.limits import ClientLimits, Limits
from actors.metrics_aggregator import MetricsAggregator, ticking
from actors.password_hasher import PasswordHasher
from actors.rate_limiter import RateLimiter
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from service.embedded.mail_catcher import list_mails, read_mail
from service.http.app import Parts, build
from service.http.middleware import EXCHANGE
from service.http.pages import CaughtMails
from service.mail.message import available_locales
from service.passwords import Bcrypt, EmailAddresses, common_passwords
from service.postgres.accounts import PostgresAccounts
from service.postgres.ids import uuid7
from service.postgres.mails import KEPT_DAYS, purge
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
from service.telemetry.tracing import tracing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from anyio.abc import TaskGroup

    from actors.kit.mailbox import Address
    from actors.metrics_ports import RuntimeStatistics
    from service.embedded.servers import Servers
    from service.settings import Settings

PURGE_SECONDS = 600.0  # an expired key does no harm meanwhile
DAY_SECONDS = 86400
CODES_PER_CLIENT = Rule("codes-client", 3, 3600)  # of one address: a client that asks for more is not its owner


def limits_of(settings: Settings) -> Limits:
    """Return the limits in force."""
    return Limits(
        register=settings.register_limit,
        activate=settings.activate_limit,
        password=settings.password_limit,
        password_client=settings.password_client_limit,
        basic=settings.basic_limit,
        codes_client=CODES_PER_CLIENT if settings.code_limits else None,
    )


class _Given(NamedTuple):
    """What the flows' own actors are started with, and those that others send to as well."""

    start: Callable[..., Address]
    accounts: PostgresAccounts
    wakeups: TaskiqWakeups
    limiter: Address
    counted: Counter[str]
    hasher: Address


@asynccontextmanager
async def api(
    settings: Settings, servers: Servers, worker: str, lost_lines: Callable[[], int] = lambda: 0
) -> AsyncIterator[tuple[Any, Callable[[], None]]]:
    """Open everything around the body; give the application and what begins its drain. `lost_lines` counts for the log.

    Starts while Postgres and Redis are away, and serves what can be served. On the way out background tasks end, actors
    drain, metrics are written and pools close. Raises TooManyCrashes, inside an exception group, when an actor keeps
    crashing.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        traces = await enter(tracing(worker))
        postgres = await enter(Postgres.open(servers.database_url))
        redis = await enter(Redis.open(servers.redis_url))
        aside = await enter(_aside())

        keyring, counted = Keyring(servers.code_keys, settings.code_digits), Counter[str]()
        rate_limits = RateLimitsFallback(RedisRateLimits(redis), PostgresRateLimits(postgres))
        lasting, live = PostgresMetrics(postgres), RedisMetrics(redis)
        totals = Totals(f"{worker}.{uuid4().hex[:8]}")  # one run's totals are never another's
        supervisor = Supervisor(_report_crash)
        start = partial(traces.start, supervisor)

        def statistics() -> RuntimeStatistics:
            return runtime(supervisor, postgres, redis, {**counted, LOG_LINES_DROPPED: lost_lines()})

        metrics = start(lambda: MetricsAggregator(totals, live, lasting, statistics))
        limiter = start(lambda: RateLimiter(rate_limits, counted))
        hasher = await enter(_hashing(settings, start, limiter))
        accounts = PostgresAccounts(postgres, settings.code_policy, worker)
        signup = _signup(settings, keyring, _Given(start, accounts, TaskiqWakeups(redis), limiter, counted, hasher))
        await enter(supervisor.running())
        aside.start_soon(ticking, metrics)
        aside.start_soon(rate_limits.cleaning)
        aside.start_soon(_purging, postgres)
        health = HealthChecks(postgres, redis)
        parts = Parts(
            settings=settings,
            signup=signup,
            background=await enter(BackgroundTasks.open()),
            metrics=metrics,
            limiter=limiter,
            reader=Reader(totals, live, lasting, lasting, runtime=statistics),
            health=health,
            locales=available_locales(settings),
            noticed=counted,
            caught_mails=caught_mails(settings),
        )
        yield traces.application(build(parts), EXCHANGE), health.drain


def caught_mails(settings: Settings) -> CaughtMails | None:
    """Return how the mails of the built-in catcher are read; None where mails leave."""
    if settings.env == "production" or settings.mail_url is not None:
        return None
    folder = settings.data_dir / "mails"
    return CaughtMails(partial(list_mails, folder), partial(read_mail, folder))


def _signup(settings: Settings, keyring: Keyring, given: _Given) -> SignUp:
    """Build the flows and start their own actors."""
    strict, policy = settings.enumeration == "strict", settings.code_policy
    registry = given.start(lambda: UserRegistry(given.accounts, policy, strict=strict))
    issuer = given.start(lambda: CodeIssuer(given.accounts, given.wakeups))
    addresses, limits = EmailAddresses(), ClientLimits(given.limiter, limits_of(settings), keyring, given.counted)
    return SignUp(
        registry=registry,
        hasher=given.hasher,
        issuer=issuer,
        limits=limits,
        authentication=Authentication(registry=registry, hasher=given.hasher, limits=limits, addresses=addresses),
        keyring=keyring,
        policy=policy,
        addresses=addresses,
        common_passwords=common_passwords(),
        new_id=uuid7,
        strict=strict,
    )


@asynccontextmanager
async def _aside() -> AsyncIterator[TaskGroup]:
    """Run what goes on beside the actors around the body, and cancel it after."""
    async with anyio.create_task_group() as group:
        yield group
        group.cancel_scope.cancel()


@asynccontextmanager
async def _hashing(settings: Settings, start: Callable[..., Address], limiter: Address) -> AsyncIterator[Address]:
    """Keep as many hash threads as there are cores around the body, behind one PasswordHasher each.

    Blocks for one hash: by its CPU time, times the workers that share the cores, the queue is bounded from the start.
    """
    cores = os.cpu_count() or 1
    async with Bcrypt.open(settings.bcrypt_cost, cores) as bcrypt:
        dummy, cpu_seconds = bcrypt.dummy()
        seconds = cpu_seconds * settings.workers
        yield start(
            lambda: PasswordHasher(bcrypt, limiter, cores, dummy, seconds=seconds, chance=random.random), copies=cores
        )


async def _purging(postgres: Postgres) -> None:
    """Delete what has expired, now and then, in one of the processes or another."""
    while True:
        await anyio.sleep(PURGE_SECONDS)
        with suppress(MachineError):
            await purge(postgres, uuid7(time.time() - KEPT_DAYS * DAY_SECONDS))


def _report_crash(name: str, error: Exception) -> None:
    logger.bind(actor=name).opt(exception=error).error("an actor crashed and is built anew")
