from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from service.postgres.migrations import migrate
from tests.faults.clients import new
from tests.faults.outage import at_once, load, passes, told
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sized

    from tests.faults.clients import Answer, Clients
    from tests.faults.outage import Site

AWAY_SECONDS = 2.0  # within which every answer comes while PostgreSQL is away
BACK_SECONDS = 3.0  # within which everything works again after its return
CROWD = 24  # registrations at the same time: none may wait for another one's time-out
KEY_SECONDS = 8.0  # a key whose answer was lost is free again after 3 s, and those who wait for theirs take turns
OUTAGES = pytest.mark.parametrize("lasts", [1.0, 5.0])  # shorter and longer than a pool's own tries go on
LONG = 5.0
BY_NAME = """
SELECT split_part(email_key, \'@\', 1), count(m.id)
FROM vestibule.accounts a JOIN vestibule.mails m ON m.account_id = a.id GROUP BY 1
"""


def outage(service: Site, fault: str, begin: Callable[[], None], end: Callable[[], None], lasts: float) -> None:
    """Hurt PostgreSQL, see that everybody is answered as promised, heal it, and tell what was measured."""
    clients, waiting = service.clients, pending(service)
    processes = service.workers()
    begin()
    try:
        until = time.monotonic() + lasts
        first = at_once(CROWD, lambda: clients.register(new()))
        later: list[Answer] = []
        while time.monotonic() < until or len(later) < 3:
            later += refused(clients, waiting)
            assert clients.ask("GET", "/livez").status == 200
            assert clients.ask("GET", "/readyz").status == 503
            assert clients.ask("GET", "/api/v1/health").body["status"] == "down"
    finally:
        end()
    for answer in [*first, *later]:
        assert (answer.status, answer.error) == (503, "StoreUnavailable"), answer
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.seconds < patience(AWAY_SECONDS), answer
    back = service.recovers(BACK_SECONDS)
    whole = service.signs_up()
    assert clients.activate(*waiting).status == 200
    assert service.workers() == processes, "an outage is no crash"
    slowest = [max(answer.seconds for answer in answers) for answers in (first, later)]
    told(fault=f"postgres {fault}", lasts=lasts, first=slowest[0], later=slowest[1], back=back, signs_up=whole)


def refused(clients: Clients, waiting: tuple[str, str]) -> list[Answer]:
    """Try to register, with a key and without, and to activate."""
    name = new()
    return [clients.register(new()), clients.register(name, Idempotency_Key=name), clients.activate(*waiting)]


def more_than(number: int, answers: Sized) -> bool:
    """Return whether the load has so many answers."""
    return len(answers) > number


def pending(service: Site) -> tuple[str, str]:
    """Return somebody who waits, and the code."""
    name = new()
    assert service.clients.register(name).status == 201
    return name, service.mailed(name)[0]


@OUTAGES
def test_killed(service: Site, lasts: float) -> None:
    """Kill -9 of PostgreSQL: 503 StoreUnavailable at once, livez 200, readyz 503; all is well soon after its start."""
    outage(service, "killed", service.postgres.kill, service.postgres.start, lasts)


@OUTAGES
def test_stopped(service: Site, lasts: float) -> None:
    """SIGSTOP of PostgreSQL: the first callers wait for less than 2 s, later ones not at all."""
    outage(service, "stopped", service.postgres.stall, service.postgres.resume, lasts)


def test_refusing(service: Site) -> None:
    """PostgreSQL's port is closed and its connections are cut."""
    outage(service, "refusing", service.database.refuse, service.database.accept, LONG)


def test_half_open(service: Site) -> None:
    """The network swallows what is said, then forgets the connections: nobody hangs on one of them."""
    outage(service, "half-open", service.database.hold, lambda: service.database.flow(forget=True), LONG)


def test_restarted(service: Site) -> None:
    """A restart under load fails no request."""
    with load(lambda: service.clients.register(new())) as answers:
        for rounds in (1, 2):
            wait_for(partial(more_than, 80 * rounds, answers), "load")
            began = time.monotonic()
            service.postgres.restart()
            took = time.monotonic() - began
        wait_for(lambda: len(answers) > 240, "load after it")
    slowest = max(answer.seconds for answer in answers)
    told(fault="postgres restarted", took=took, requests=len(answers), slowest=slowest)
    assert [answer for answer in answers if answer.status != 201] == []


@pytest.mark.slow
def test_stopped_in_the_middle(service: Site) -> None:
    """Whoever hears 503 in the middle of a registration and repeats it with the same key has one account, one mail."""
    heard: dict[str, Answer] = {}

    def register() -> Answer:
        name = new()
        heard[name] = service.clients.register(name, Idempotency_Key=name)
        return heard[name]

    with load(register, clients=8) as answers:
        for rounds in range(1, 6):
            wait_for(partial(more_than, 40 * rounds, answers), "load")
            service.postgres.stall()
            passes(1.8)
            service.postgres.resume()
    assert {answer.status for answer in heard.values()} <= {201, 503}
    caught = [name for name, answer in heard.items() if answer.status == 503 and answer.seconds > 0.2]
    began, again = time.monotonic(), 0
    for name in caught:
        while (answer := service.clients.register(name, Idempotency_Key=name)).status != 201:
            assert answer.error in {"RequestInProgress", "StoreUnavailable"}, answer
            assert time.monotonic() - began < patience(KEY_SECONDS)
            again += 1
    rows = dict(service.postgres.query(BY_NAME))
    created = [name for name, answer in heard.items() if answer.status == 201]
    assert {rows[name] for name in [*created, *caught]} == {1}
    unknown = sum(answer.error == "OutcomeUnknown" for answer in heard.values())
    seconds = time.monotonic() - began
    told(fault="postgres stopped in the middle", caught=len(caught), unknown=unknown, repeats=again, known=seconds)


def test_wiped(service: Site) -> None:
    """An emptied database is an outage and no crash of anybody, until it is migrated again."""
    processes = service.workers()
    service.postgres.wipe()
    wait_for(lambda: not service.clients.ready(), "it says that it is not ready", 3.0)
    answers = [service.clients.register(new()) for _ in range(12)]
    assert {(answer.status, answer.error) for answer in answers} == {(503, "StoreUnavailable")}, answers
    migrate(service.postgres.url)
    back = service.recovers(BACK_SECONDS)
    assert service.workers() == processes, "an outage is no crash"
    told(fault="postgres wiped", back=back, signs_up=service.signs_up())


def test_slow(service: Site) -> None:
    """Every packet late by 100 ms each way: all goes on, later by the round trips of the statements."""
    service.database.delay = 0.1
    try:
        took = service.signs_up(10.0)
    finally:
        service.database.heal()
    told(fault="postgres slow", signs_up=took)
