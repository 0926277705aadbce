from __future__ import annotations

import statistics
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis

from tests.faults.clients import new
from tests.faults.outage import load, slowest, told
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.outage import Site

STALL_SECONDS = 0.25  # what a stalled Redis may add to a request, once in each worker
UNRUNG_SECONDS = 3.0  # within which a mail leaves without its wake-up


def everything(service: Site) -> None:
    """Register, read the mail, resend, read the other mail, activate."""
    [name] = service.registered()
    service.mailed(name, 1, UNRUNG_SECONDS)
    resent = service.clients.resend(name)
    assert resent.status == 202, resent
    activated = service.clients.activate(name, service.mailed(name, 2, UNRUNG_SECONDS)[0])
    assert activated.status == 200, activated


def away(service: Site) -> bool:
    """Return whether the service knows that Redis is away; then it is degraded, and ready."""
    health = service.clients.ask("GET", "/api/v1/health")
    assert (health.status, service.clients.ready()) == (200, True)
    return bool(health.body["status"] == "degraded" and health.body["checks"]["redis"] != "ok")


@contextmanager
def full(service: Site) -> Iterator[None]:
    """Let Redis be out of memory for the body: it reads, and refuses every write."""
    with redis.Redis.from_url(service.redis.url) as server:
        server.config_set("maxmemory", 1)
        try:
            yield
        finally:
            server.config_set("maxmemory", 0)


@pytest.mark.parametrize("fault", ["killed", "stopped", "refusing", "half_open", "full"])
def test_away(service: Site, fault: str) -> None:
    """No answer is a 5xx, one request of each worker waits, mails leave without wake-ups; later Redis is used again."""
    with full(service) if fault == "full" else service.hurt("redis", fault):
        answers = [service.clients.register(new()) for _ in range(24)]
        assert {answer.status for answer in answers} == {201}, answers
        assert slowest(answers) < patience(STALL_SECONDS + 0.5)
        assert statistics.median(answer.seconds for answer in answers) < patience(0.1), "only the first one pays"
        everything(service)
        if fault != "full":
            wait_for(lambda: away(service), "health tells", 5.0)
    wait_for(lambda: not away(service), "it is used again", 5.0)
    everything(service)
    told(fault=fault, slowest=slowest(answers))


def flush(service: Site) -> None:
    """FLUSHALL, the scripts too."""
    with redis.Redis.from_url(service.redis.url) as server:
        server.flushall()
        server.script_flush()


def restart(service: Site, *, empty: bool = False) -> None:
    """Kill it and start it again."""
    service.redis.kill()
    service.redis.start(empty=empty)


def replace(service: Site) -> None:
    """Put an empty one in its place."""
    restart(service, empty=True)


@pytest.mark.parametrize("change", [restart, flush, replace])
def test_restarted_or_wiped(service: Site, change: Callable[[Site], None]) -> None:
    """A load goes through it unharmed."""
    with load([lambda: service.clients.register(new())] * 2) as answers:
        wait_for(lambda: len(answers) > 20, "load")
        change(service)
        before = len(answers)
        wait_for(lambda: len(answers) > before + 40, "load after it")
    assert {answer.status for answer in answers} == {201}
    everything(service)
    told(fault=change.__name__, requests=len(answers), slowest=slowest(answers))


@pytest.mark.parametrize("delay", [0.05, 0.4])
def test_slow(service: Site, delay: float) -> None:
    """Late by less than the time-out all goes over Redis; late by more it is away."""
    with service.slow(service.cache, delay):
        answers = [service.clients.register(new()) for _ in range(12)]
        everything(service)
    assert {answer.status for answer in answers} == {201}, answers
    assert slowest(answers) < patience(1.5)
    told(fault="slow", delay=delay, slowest=slowest(answers))
