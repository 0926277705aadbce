"""Reads how a worker's machinery stands: mailboxes, restarts, the pool, the servers' outages, lost log lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from actors.metrics_ports import Machinery

if TYPE_CHECKING:
    from collections.abc import Callable

    from actors.kit.supervisor import Supervisor
    from service.adapters.postgres import Postgres
    from service.adapters.redis_client import Redis
    from service.log_writer import LogWriter


def machinery(
    supervisor: Supervisor, postgres: Postgres, redis: Redis, writer: LogWriter | None = None
) -> Callable[[], Machinery]:
    """Return what the aggregator calls once a second; it costs some ten microseconds and waits for nothing."""

    def read() -> Machinery:
        levels: dict[str, float] = {}
        counters: dict[str, float] = {}
        for post in supervisor.posts():
            mailbox = post.mailbox.statistics()
            levels[f"mailbox_waiting|{post.name}"] = mailbox.waiting
            levels[f"mailbox_capacity|{post.name}"] = mailbox.capacity
            counters[f"mailbox_dropped|{post.name}"] = mailbox.dropped
            counters[f"mailbox_turned_away|{post.name}"] = mailbox.turned_away
            counters[f"restarts|{post.name}"] = post.restarts
        for server, breaker in (("redis", redis.statistics()), ("database", postgres.breaker())):
            levels[f"away|{server}"] = int(breaker.is_open)
            counters[f"outages|{server}"] = breaker.opened
        pool = postgres.statistics()
        levels["pool_size"] = pool.get("pool_size", 0)
        levels["pool_available"] = pool.get("pool_available", 0)
        levels["pool_waiting"] = pool.get("requests_waiting", 0)
        counters["pool_errors"] = pool.get("requests_errors", 0)
        counters["log_lines_dropped"] = writer.dropped if writer is not None else 0
        return Machinery(levels, counters)

    return read
