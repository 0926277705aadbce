from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import redis

from tests.faults.clients import new
from tests.faults.outage import load, told
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.outage import Site

STALL_SECONDS = 0.25  # what a stalled Redis may add to a request, once in each worker
UNRUNG_SECONDS = 3.0  # within which a mail leaves without its wake-up


def everything(service: Site) -> dict[str, float]:
    """Register, read the mail, resend, read the other mail, activate; return the slowest answer and mail."""
    name, clients = new(), service.clients
    registered = clients.register(name)
    assert registered.status == 201, registered
    _, first = service.mailed(name, 1, UNRUNG_SECONDS)
    resent = clients.resend(name)
    assert resent.status == 202, resent
    code, second = service.mailed(name, 2, UNRUNG_SECONDS)
    activated = clients.activate(name, code)
    assert activated.status == 200, activated
    return {
        "answer": max(registered.seconds, resent.seconds, activated.seconds),
        "mail": max(first, second),
    }


@contextmanager
def hurt(service: Site, fault: str, begin: Callable[[], object], end: Callable[[], object]) -> Iterator[None]:
    """See that all goes on while Redis is hurt and after it, without one 5xx; tell what it took."""
    begin()
    try:
        answers = [service.clients.register(new()) for _ in range(24)]
        assert {answer.status for answer in answers} == {201}, answers
        seconds = [answer.seconds for answer in answers]
        assert max(seconds) < patience(STALL_SECONDS + 0.5)
        assert statistics.median(seconds) < patience(0.1), "only the first one pays"
        during = everything(service)
        yield
    finally:
        end()
    after = everything(service)
    told(
        fault=f"redis {fault}",
        slowest=max(seconds),
        median=statistics.median(seconds),
        mail=during["mail"],
        back=after["answer"],
        mail_after=after["mail"],
    )


def away(service: Site) -> bool:
    """Return whether the service knows that Redis is away."""
    checks = service.clients.ask("GET", "/api/v1/health").body["checks"]
    return bool(checks["redis"] != "ok")


def test_killed(service: Site) -> None:
    """Kill -9 of Redis: nothing fails or waits, and health says degraded."""
    with hurt(service, "killed", service.redis.kill, service.redis.start):
        wait_for(lambda: away(service), "health tells", 5.0)
        assert service.clients.ready()
    wait_for(lambda: not away(service), "it is used again", 5.0)


def test_stopped(service: Site) -> None:
    """SIGSTOP of Redis: a quarter of a second once in each worker, then nothing."""
    with hurt(service, "stopped", service.redis.stall, service.redis.resume):
        wait_for(lambda: away(service), "health tells", 5.0)
    wait_for(lambda: not away(service), "it is used again", 5.0)


def test_half_open(service: Site) -> None:
    """The network swallows what is said, then forgets the connections."""
    with hurt(service, "half-open", service.cache.hold, lambda: service.cache.flow(forget=True)):
        assert away(service)
    wait_for(lambda: not away(service), "it is used again", 5.0)


def test_refusing_connections(service: Site) -> None:
    """Redis' port is closed."""
    with hurt(service, "refusing", service.cache.refuse, service.cache.accept):
        assert away(service)
    wait_for(lambda: not away(service), "it is used again", 5.0)


def test_refusing_to_write(service: Site) -> None:
    """Redis is out of memory: it reads, and refuses every write."""
    with (
        redis.Redis.from_url(service.redis.url) as server,
        hurt(service, "full", lambda: server.config_set("maxmemory", 1), lambda: server.config_set("maxmemory", 0)),
    ):
        pass


def test_restarted(service: Site) -> None:
    """A restart under load fails no request."""

    def restart() -> None:
        service.redis.kill()
        service.redis.start()

    through(service, "restarted", restart)


def test_wiped(service: Site) -> None:
    """FLUSHALL, the scripts too, and an empty server in its place: no request fails."""

    def flush() -> None:
        with redis.Redis.from_url(service.redis.url) as server:
            server.flushall()
            server.script_flush()

    def replace() -> None:
        service.redis.kill()
        service.redis.start(empty=True)

    through(service, "flushed", flush)
    through(service, "emptied", replace)


def test_slow(service: Site) -> None:
    """Late by less than the time-out all goes over Redis; late by more it is away."""
    for delay in (0.05, 0.4):
        service.cache.delay = delay
        try:
            answers = [service.clients.register(new()) for _ in range(12)]
            took = everything(service)
        finally:
            service.cache.heal()
        assert {answer.status for answer in answers} == {201}, answers
        slowest = max(answer.seconds for answer in answers)
        assert slowest < patience(1.5)
        told(fault="redis slow", delay=delay, slowest=slowest, mail=took["mail"])


def through(service: Site, fault: str, change: Callable[[], None]) -> None:
    """See that a load goes through the change unharmed."""
    with load(lambda: service.clients.register(new())) as answers:
        wait_for(lambda: len(answers) > 20, "load")
        began = time.monotonic()
        change()
        took, before = time.monotonic() - began, len(answers)
        wait_for(lambda: len(answers) > before + 60, "load after it")
    assert {answer.status for answer in answers} == {201}
    whole = everything(service)
    slowest = max(answer.seconds for answer in answers)
    told(fault=f"redis {fault}", took=took, requests=len(answers), slowest=slowest, mail=whole["mail"])
