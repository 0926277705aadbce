from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

from service.postgres.migrations import migrate
from tests.e2e.at_once import at_once
from tests.faults.clients import new
from tests.faults.outage import load, slowest, told
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.faults.clients import Answer
    from tests.faults.outage import Site

AWAY_SECONDS = 2.0  # within which every answer comes while PostgreSQL is away
BACK_SECONDS = 3.0  # within which everything works again after its return
CROWD = 24  # registrations at the same time: none may wait for another one's time-out
KEY_SECONDS = 8.0  # a key whose answer was lost is free again after 3 s, and those who wait for theirs take turns
SHORT, LONG = 1.0, 5.0  # shorter and longer than a pool's own tries go on
OUTAGES = [("killed", LONG), ("stopped", SHORT), ("stopped", LONG), ("refusing", SHORT), ("half_open", LONG)]


def more_than(number: int, answers: Sequence[Answer], status: int = 201) -> bool:
    """Return whether the load has so many answers of a status."""
    return [answer.status for answer in answers].count(status) > number


@pytest.mark.parametrize(
    ("fault", "lasts"),
    [("killed", LONG), ("stopped", SHORT), ("stopped", LONG), ("refusing", SHORT), ("half_open", LONG)],
)
def test_away(service: Site, fault: str, lasts: float) -> None:
    """503 StoreUnavailable to everybody in less than 2 s, livez 200, readyz 503; all is well soon after its return."""
    clients, processes = service.clients, service.workers()
    [waiting] = service.registered()
    code, _ = service.mailed(waiting)
    with service.hurt("postgres", fault):
        until = time.monotonic() + lasts
        first = at_once([lambda: clients.register(new())] * CROWD)
        later: list[Answer] = []
        while time.monotonic() < until or len(later) < 3:
            name = new()
            later += [clients.register(name), clients.register(name, Idempotency_Key=name)]
            later += [clients.activate(waiting, code)]
            assert clients.ask("GET", "/livez").status == 200
            assert clients.ask("GET", "/readyz").status == 503
            assert clients.ask("GET", "/api/v1/health").body["status"] == "down"
    for answer in [*first, *later]:
        assert (answer.status, answer.error) == (503, "StoreUnavailable"), answer
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.seconds < patience(AWAY_SECONDS), answer
    back = service.recovers(BACK_SECONDS)
    whole = service.signs_up()
    assert clients.activate(waiting, code).status == 200
    assert service.workers() == processes, "an outage is no crash"
    told(fault=fault, lasts=lasts, first=slowest(first), later=slowest(later), back=back, signs_up=whole)


def test_restarted(service: Site) -> None:
    """A restart under load fails no request."""
    with load([lambda: service.clients.register(new())] * 2) as answers:
        for rounds in (1, 2):
            wait_for(partial(more_than, 40 * rounds, answers), "load")
            service.postgres.restart()
        wait_for(partial(more_than, len(answers) + 40, answers), "load after it")
    assert [answer for answer in answers if answer.status != 201] == []
    told(fault="restarted", requests=len(answers), slowest=slowest(answers))


@pytest.mark.slow
def test_stopped_in_the_middle(service: Site) -> None:
    """Whoever hears 503 in the middle of a registration and repeats it with the same key has one account, one mail."""
    heard: dict[str, Answer] = {}

    def register() -> Answer:
        name = new()
        heard[name] = service.clients.register(name, Idempotency_Key=name)
        return heard[name]

    with load([register] * 8) as answers:
        for rounds in range(1, 6):
            wait_for(partial(more_than, 40 * rounds, answers), "load")
            with service.hurt("postgres", "stopped"):
                wait_for(partial(more_than, 8 * (rounds - 1), answers, 503), "some hear 503")
    assert {answer.status for answer in heard.values()} <= {201, 503}
    caught = [name for name, answer in heard.items() if answer.status == 503 and answer.seconds > 0.2]
    began = time.monotonic()
    for name in caught:
        while (answer := service.clients.register(name, Idempotency_Key=name)).status != 201:
            assert answer.error in {"RequestInProgress", "StoreUnavailable"}, answer
            assert time.monotonic() - began < patience(KEY_SECONDS)
    created = [name for name, answer in heard.items() if answer.status == 201]
    assert {service.mails_made(name) for name in [*created, *caught]} == {1}
    unknown = sum(answer.error == "OutcomeUnknown" for answer in heard.values())
    told(fault="stopped in the middle", caught=len(caught), unknown=unknown, known=time.monotonic() - began)


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
    told(fault="wiped", back=back, signs_up=service.signs_up())


def test_slow(service: Site) -> None:
    """Every packet late by 100 ms each way: all goes on, later by the round trips of the statements."""
    with service.slow(service.database, 0.1):
        told(fault="slow", signs_up=service.signs_up(10.0))
