"""How this process' runtime stands, for the metrics: mailboxes, restarts, limits, pool, breakers, logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.metrics_ports import RuntimeStatistics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from actors.kit.supervisor import Supervisor
    from service.postgres.pool import Postgres
    from service.redis.client import Redis


LOG_LINES_DROPPED = "log_lines_dropped"
# Shown from the start, as all others are.
COUNTED = ("forwarded_untrusted", "limits_given_back", "limits_give_backs_lost", LOG_LINES_DROPPED)


def runtime(supervisor: Supervisor, postgres: Postgres, redis: Redis, counted: Mapping[str, int]) -> RuntimeStatistics:
    """Return the current levels and the counters since the start; `counted` are those that no part here keeps."""
    levels: dict[str, float] = {
        "breaker_open|postgres": float(postgres.breaker.is_open),
        "breaker_open|redis": float(redis.breaker.is_open),
    }
    counters: dict[str, float] = {
        "breaker_opened|postgres": postgres.breaker.opened,
        "breaker_opened|redis": redis.breaker.opened,
        **dict.fromkeys(COUNTED, 0),
        **counted,
    }
    for service in supervisor.services():
        mailbox = service.mailbox
        levels[f"mailbox_waiting|{service.name}"] = len(mailbox)
        counters[f"mailbox_dropped|{service.name}"] = mailbox.dropped
        counters[f"mailbox_turned_away|{service.name}"] = mailbox.turned_away
        counters[f"restarts|{service.name}"] = service.restarts
    connections = postgres.statistics()
    levels["pool_connections"] = connections.open
    levels["pool_available"] = connections.free
    levels["pool_waiting"] = connections.waiting
    counters["pool_connected"] = connections.made
    counters["pool_timed_out"] = connections.late
    return RuntimeStatistics(levels, counters)
