"""The only place where all meet: adapters opened, actors employed, flows built, everything closed in reverse."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
from loguru import logger

from actors.access import Access
from actors.code_issuer import CodeIssuer
from actors.domain.code import Keyring
from actors.domain.tally import Tally
from actors.domain.windows import Rule
from actors.forms import Limits, Rules
from actors.idempotency import Idempotency
from actors.kit.errands import Errands
from actors.kit.mailbox import MachineError
from actors.kit.supervisor import Supervisor
from actors.metrics_aggregator import MetricsAggregator, ticking
from actors.rate_limiter import Decisions, RateLimiter
from actors.shadow_registry import ShadowRegistry
from actors.shadows import Shadows
from actors.signup import SignUp
from actors.user_registry import UserRegistry
from service.adapters.common_passwords import common_passwords
from service.adapters.email_addresses import EmailAddresses
from service.adapters.postgres import Postgres
from service.adapters.postgres_accounts import PostgresAccounts
from service.adapters.postgres_codes import CodePolicy, PostgresCodes
from service.adapters.postgres_desk import PostgresDesk
from service.adapters.postgres_expired import forget
from service.adapters.postgres_idempotency import PostgresIdempotencyKeys
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.postgres_shadows import PostgresShadowCodes, PostgresShadows
from service.adapters.postgres_windows import PostgresWindows
from service.adapters.redis_client import Redis
from service.adapters.redis_metrics import RedisMetrics
from service.adapters.redis_windows import RedisWindows
from service.adapters.taskiq_wakeups import TaskiqWakeups
from service.adapters.windows_fallback import WindowsFallback
from service.hashing import hashing
from service.machinery import LOG_LINES_DROPPED, machinery
from service.metrics_reader import Reader
from service.surroundings import Surroundings
from service.tracing.tracing import UNTRACED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from actors.kit.mailbox import Address
    from actors.metrics_ports import Machinery, MetricsReader
    from service.servers import Servers
    from service.settings import Settings
    from service.tracing.tracing import Tracing

FORGET_SECONDS = 600.0  # an expired idempotency key does no harm meanwhile
CODES_PER_CLIENT = Rule("codes-client", 3, 3600)  # of one address: who asks for more is not its owner


@dataclass(frozen=True, slots=True)
class Service:
    """What one process offers: the flows, the metrics, the health, and the actors behind them."""

    signup: SignUp
    metrics: Address
    limiter: Address
    supervisor: Supervisor
    health: Surroundings
    reader: MetricsReader
    desk: PostgresDesk
    noticed: Counter[str]


def limits(settings: Settings) -> Limits:
    """Return the limits in force."""
    return Limits(
        register=settings.register_limit,
        activate=settings.activate_limit,
        password=settings.password_limit,
        password_client=settings.password_client_limit,
        invalid=settings.invalid_limit,
        basic=settings.basic_limit,
        codes_client=CODES_PER_CLIENT if settings.code_limits else None,
    )


@asynccontextmanager
async def running(  # noqa: PLR0913, PLR0917 - what a process is given
    settings: Settings,
    servers: Servers,
    worker: str,
    keys: Mapping[str, bytes],
    tracing: Tracing = UNTRACED,
    lost_lines: Callable[[], int] = lambda: 0,
) -> AsyncIterator[Service]:
    """Open everything around the body; `keys` are those of `servers.code_keys`, `lost_lines` counts for the log.

    The way out: errands end, actors drain, metrics are written, pools close.
    Starts while Postgres and Redis are away, and serves what can be served. Raises TooManyCrashes, inside an
    exception group, when an actor keeps crashing.
    """
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        postgres = await enter(Postgres.open(servers.database_url))
        redis = await enter(Redis.open(servers.redis_url))
        aside = await enter(anyio.create_task_group())
        stack.callback(aside.cancel_scope.cancel)

        windows = WindowsFallback(RedisWindows(redis), PostgresWindows(postgres))
        aside.start_soon(windows.cleaning)
        idempotency_keys = PostgresIdempotencyKeys(postgres)
        policy = CodePolicy.of(settings)
        accounts = PostgresAccounts(postgres, policy, worker)
        strict = settings.enumeration == "strict"
        registrations = PostgresShadows(postgres, policy, worker)
        codes = (PostgresShadowCodes if strict else PostgresCodes)(postgres, policy, worker)
        ledger, quick = PostgresMetrics(postgres), RedisMetrics(redis)
        tally = Tally(f"{worker}.{uuid4().hex[:8]}")  # one run's totals are never another's

        supervisor, decisions, noticed = Supervisor(_report), Decisions(), Counter[str]()

        def standing() -> Machinery:
            return machinery(supervisor, decisions, postgres, redis, {**noticed, LOG_LINES_DROPPED: lost_lines()})

        metrics = supervisor.employ(lambda: MetricsAggregator(tally, quick, ledger, standing))
        limiter = tracing.employ(supervisor, lambda: RateLimiter(windows, decisions))
        hasher = await enter(hashing(settings, partial(tracing.employ, supervisor), limiter))
        registry = tracing.employ(supervisor, lambda: UserRegistry(accounts))
        issuer = tracing.employ(supervisor, lambda: CodeIssuer(codes, TaskiqWakeups(redis)))
        shadow_registry = tracing.employ(supervisor, lambda: ShadowRegistry(registrations)) if strict else None
        await enter(supervisor.running())
        aside.start_soon(ticking, metrics)
        aside.start_soon(_forgetting, postgres)

        ring = Keyring(keys, settings.code_digits)
        idempotency = Idempotency(idempotency_keys, ring)
        aside.start_soon(idempotency.renewing)
        aside.start_soon(idempotency.releasing)
        rules = Rules(
            keyring=ring,
            attempts=settings.code_attempts,
            cooldown=settings.resend_cooldown_seconds,
            addresses=EmailAddresses(),
            common_passwords=common_passwords(),
        )
        shadows = Shadows(shadow_registry, hasher, ring) if shadow_registry else None
        access = Access(
            limiter=limiter, registry=registry, hasher=hasher, limits=limits(settings), rules=rules, shadows=shadows
        )
        errands = await enter(Errands.open())
        signup = SignUp(
            registry=registry,
            issuer=issuer,
            access=access,
            idempotency=idempotency,
            errands=errands,
            rules=rules,
            shadows=shadows,
        )
        health = Surroundings(postgres, redis)
        reader = Reader(tally, quick, ledger, ledger, machinery=standing)
        yield Service(signup, metrics, limiter, supervisor, health, reader, PostgresDesk(postgres, policy), noticed)


async def _forgetting(postgres: Postgres) -> None:
    """Delete what has expired, now and then, in one of the processes or another."""
    while True:
        await anyio.sleep(FORGET_SECONDS)
        with suppress(MachineError):
            await forget(postgres)


def _report(name: str, error: Exception) -> None:
    logger.bind(actor=name).opt(exception=error).error("an actor crashed and is built anew")
