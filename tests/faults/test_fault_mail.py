from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.faults.clients import new
from tests.faults.outage import passes, site, told
from tests.servers.processes import send
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.outage import Site

LEASE_SECONDS = 15
POISON = """
WITH someone AS (
    INSERT INTO vestibule.accounts (id, email_key, email, password_hash, locale)
    VALUES (gen_random_uuid(), 'poison@example.com', E'poison\\nBcc: x@example.com', 'none', 'en') RETURNING id
)
INSERT INTO vestibule.mails (id, account_id, registration, number, kind, key_id, expires_at)
SELECT gen_random_uuid(), id, 1, 1, 'code', (SELECT key_id FROM vestibule.mails LIMIT 1), now() + interval '10 minutes'
FROM someone
"""
REASON = "SELECT reason FROM vestibule.mails m JOIN vestibule.accounts a ON a.id = m.account_id WHERE email_key = %s"
POISONED = REASON.replace("%s", "'poison@example.com'")
IN_HANDS = "SELECT count(*) FROM vestibule.mails WHERE state = 'sending'"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a service with two mail workers."""
    with site(tmp_path_factory.mktemp("m"), MAIL_WORKERS="2", BASIC_LIMIT="off") as one:
        wait_for(lambda: one.said().count("mail worker started") == 2, "both work")
        yield one


def registered(service: Site, number: int = 1) -> list[str]:
    """Return names that have just registered."""
    names = [new() for _ in range(number)]
    for name in names:
        answer = service.clients.register(name)
        assert answer.status == 201, answer
    return names


def left(service: Site, names: list[str], promised: float) -> float:
    """Wait until everybody has a mail; return the seconds, when every code has activated and none came twice."""
    seconds = wait_for(lambda: all(service.codes(name) for name in names), "all mails have left", promised)
    for name in names:
        assert service.clients.activate(name, service.codes(name)[-1]).status == 200
        assert len(service.codes(name)) == 1
    return seconds


def state(service: Site, name: str) -> str:
    """Return where a registration stands, as its owner sees it."""
    return str(service.clients.activation(name).body["state"])


@pytest.mark.parametrize("lasts", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed(service: Site, lasts: int) -> None:
    """The mail server is away: registrations go on; their mails leave, once, soon after it is back."""
    service.smtp.refuse()
    try:
        names = registered(service, 8)
        passes(lasts)
        assert {state(service, name) for name in names} == {"queued"}
    finally:
        service.smtp.accept()
    told(fault="mail server killed", lasts=lasts, all_left=left(service, names, 4.0))


def test_stopped(service: Site) -> None:
    """SIGSTOP of the mail server: what it holds leaves when it goes on, once."""
    service.post.hold()
    try:
        names = registered(service, 4)
        passes(3)
        assert {state(service, name) for name in names} == {"sending"}
    finally:
        service.post.flow()
    told(fault="mail server stopped", lasts=3, all_left=left(service, names, 5.0))


def test_restarted(service: Site) -> None:
    """Connections that a restart cut are replaced within the send."""
    left(service, registered(service, 2), 5.0)
    service.smtp.refuse()
    service.smtp.accept()
    told(fault="mail server restarted", all_left=left(service, registered(service, 2), 5.0))


def test_wiped(service: Site) -> None:
    """A mail that its server took and lost is gone; a resend brings another code, and only that one activates."""
    [name] = registered(service)
    lost, _ = service.mailed(name)
    service.smtp.mails.clear()
    assert service.clients.resend(name).status == 202
    code, seconds = service.mailed(name)
    refusal = service.clients.activate(name, lost)
    assert lost == code or (refusal.status == 400 and refusal.body["superseded"] is True)
    assert service.clients.activate(name, code).status == 200
    told(fault="mail server wiped", resent_after=seconds)


def test_refusing_for_now(service: Site) -> None:
    """A 4xx is tried again, with the same code, and says so meanwhile."""
    service.smtp.answer("451 4.3.0 later", times=2)
    names = registered(service, 3)
    told(fault="mail server refusing 4xx", all_left=left(service, names, 8.0))


def test_refusing_for_good(service: Site) -> None:
    """A 5xx about the recipient makes the mail dead at once; others leave, and the address can register again."""
    service.smtp.answer("550 5.1.1 nobody here", at="RCPT")
    [name] = registered(service)
    seconds = wait_for(lambda: state(service, name) == "undeliverable", "it is dead", 5.0)
    left(service, registered(service, 2), 5.0)
    with psycopg.connect(service.postgres.url) as connection:
        [(reason,)] = connection.execute(REASON, [f"{name}@example.com"]).fetchall()
    assert reason.startswith("550 5.1.1 ")
    left(service, registered_again(service, name), 5.0)
    told(fault="mail server refusing 5xx", dead_after=seconds)


def registered_again(service: Site, name: str) -> list[str]:
    """Register the same address once more."""
    assert service.clients.register(name).status == 201
    return [name]


def test_a_poisonous_mail_blocks_nobody(service: Site) -> None:
    """A row that can be made no mail of gets its reason, while its neighbours leave."""
    registered(service)
    with psycopg.connect(service.postgres.url, autocommit=True) as connection:
        connection.execute(POISON)
    seconds = left(service, registered(service, 4), 5.0)
    wait_for(lambda: service.postgres.query(POISONED) != [(None,)], "it has its reason", 10.0)
    told(fault="poisonous mail", neighbours_left=seconds)


def test_its_answer_lost(service: Site) -> None:
    """It takes a mail and the connection breaks before it says so: the same mail leaves again, with the same code."""
    service.smtp.hang_up()
    [name] = registered(service)
    _, seconds = service.mailed(name, 2)
    mails = [mail for mail in service.smtp.mails if f"{name}@example.com" in mail.recipients]
    assert len({mail.message["Message-ID"] for mail in mails}) == 1
    [code] = set(service.codes(name))
    wait_for(lambda: state(service, name) == "accepted", "it is accepted", 5.0)
    assert service.clients.activate(name, code).status == 200
    told(fault="mail server's answer lost", again_after=seconds, mails=len(mails))


def test_slow(service: Site) -> None:
    """Every packet late by 150 ms each way: mails take the round trips that they take, and leave once."""
    service.post.delay = 0.15
    try:
        seconds = left(service, registered(service, 4), 10.0)
    finally:
        service.post.heal()
    told(fault="mail server slow", all_left=seconds)


@pytest.mark.slow
def test_slow_after_data(service: Site) -> None:
    """A server that thinks for a minute about a mail, four times the lease, keeps it: it leaves once."""
    service.smtp.stall()
    try:
        [name] = registered(service)
        passes(62.0)
        assert state(service, name) == "sending"
    finally:
        service.smtp.go_on()
    told(fault="mail server slow after DATA", left=left(service, [name], 5.0))


@pytest.mark.slow
def test_a_mail_worker_killed_in_the_middle(service: Site) -> None:
    """Kill -9 while the server holds the mail: it leaves after the lease, from another worker, with the same code."""
    service.smtp.stall()
    try:
        [name] = registered(service)
        wait_for(lambda: service.postgres.query(IN_HANDS)[0][0] > 0, "it is in somebody's hands")
        for pid in service.mail_workers():
            send(pid, signal.SIGKILL)
        wait_for(lambda: len(service.mail_workers()) == 2, "both are back", 5.0)
    finally:
        service.smtp.go_on()
    began = time.monotonic()
    wait_for(lambda: state(service, name) == "accepted", "it is accepted", LEASE_SECONDS + 5)
    codes = service.codes(name)
    assert len(set(codes)) == 1, "a repeat carries the same code"
    assert service.clients.activate(name, codes[-1]).status == 200
    told(fault="mail worker killed mid-send", left_after=time.monotonic() - began, mails=len(codes))
    assert time.monotonic() - began < patience(LEASE_SECONDS + 5)
