from __future__ import annotations

import signal
import threading
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest

from tests.faults.outage import told
from tests.servers.processes import send
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from tests.faults.outage import Site

pytestmark = pytest.mark.parametrize("service", ["uvloop"], indirect=True)  # the mail worker has one loop
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


def left(service: Site, names: list[str], promised: float = 5.0) -> float:
    """Wait until everybody has a mail; return the seconds, when every code has activated and none came twice."""
    seconds = wait_for(lambda: all(service.codes(name) for name in names), "all mails have left", promised)
    for name in names:
        assert service.clients.activate(name, service.codes(name)[-1]).status == 200
        assert len(service.codes(name)) == 1
    return seconds


def state(service: Site, name: str) -> str:
    """Return where a registration stands, as its owner sees it."""
    return str(service.clients.activation(name).body["state"])


def all_are(service: Site, names: list[str], *expected: str) -> bool:
    """Return whether all registrations stand so."""
    return {state(service, name) for name in names} <= set(expected)


def reason(service: Site, email: str) -> str:
    """Return why the mail to an address was given up, empty if it was not."""
    with psycopg.connect(service.postgres.url) as connection:
        [(found,)] = connection.execute(REASON, [email]).fetchall()
    return found or ""


def test_killed(service: Site) -> None:
    """The mail server is away: registrations go on, health has a note; mails leave, once, soon after it is back."""
    service.smtp.refuse()
    try:
        names = service.registered(8)
        wait_for(lambda: service.clients.ask("GET", "/api/v1/health").body["notes"], "health has a note", 5.0)
        assert all_are(service, names, "queued", "sending")  # one of them tries for all
    finally:
        service.smtp.accept()
    told(fault="killed", all_left=left(service, names))
    wait_for(lambda: not service.clients.ask("GET", "/api/v1/health").body["notes"], "the note is gone", 10.0)


def test_stopped(service: Site) -> None:
    """SIGSTOP of the mail server: what it holds leaves when it goes on, once."""
    service.post.hold()
    try:
        names = service.registered(4)
        wait_for(partial(all_are, service, names, "sending"), "they are being sent", 5.0)
    finally:
        service.post.flow()
    told(fault="stopped", all_left=left(service, names))


def test_restarted(service: Site) -> None:
    """Connections that a restart cut are replaced within the send."""
    left(service, service.registered(2))
    service.smtp.refuse()
    service.smtp.accept()
    told(fault="restarted", all_left=left(service, service.registered(2)))


def test_wiped(service: Site) -> None:
    """A mail that its server took and lost is gone; a resend brings another code, and only that one activates."""
    [name] = service.registered()
    lost, _ = service.mailed(name)
    service.smtp.mails.clear()
    assert service.clients.resend(name).status == 202
    code, seconds = service.mailed(name)
    refusal = service.clients.activate(name, lost)
    assert lost == code or (refusal.status == 400 and refusal.body["superseded"] is True)
    assert service.clients.activate(name, code).status == 200
    told(fault="wiped", resent_after=seconds)


def test_refusing_for_now(service: Site) -> None:
    """A 4xx is tried again, with the same code."""
    service.smtp.answer("451 4.3.0 later", times=2)
    told(fault="refusing for now", all_left=left(service, service.registered(3), 8.0))


def test_refusing_for_good(service: Site) -> None:
    """A 5xx about the recipient makes the mail dead at once; others leave, and the address can register again."""
    service.smtp.answer("550 5.1.1 nobody here", at="RCPT")
    [name] = service.registered()
    seconds = wait_for(partial(all_are, service, [name], "undeliverable"), "it is dead", 5.0)
    left(service, service.registered(2))
    assert reason(service, f"{name}@example.com").startswith("550 5.1.1 ")
    assert service.clients.register(name).status == 201
    left(service, [name])
    told(fault="refusing for good", dead_after=seconds)


def test_a_poisonous_mail_blocks_nobody(service: Site) -> None:
    """A row that can be made no mail of gets its reason, while its neighbours leave."""
    service.registered()
    with psycopg.connect(service.postgres.url, autocommit=True) as connection:
        connection.execute(POISON)
    seconds = left(service, service.registered(4))
    wait_for(lambda: reason(service, "poison@example.com"), "it has its reason", 10.0)
    told(fault="poisonous mail", neighbours_left=seconds)


def test_its_answer_lost(service: Site) -> None:
    """It takes a mail and the connection breaks before it says so: the same mail leaves again, with the same code."""
    service.smtp.hang_up()
    [name] = service.registered()
    _, seconds = service.mailed(name, 2)
    mails = [mail for mail in service.smtp.mails if f"{name}@example.com" in mail.recipients]
    assert len({mail.message["Message-ID"] for mail in mails}) == 1
    [code] = set(service.codes(name))
    wait_for(partial(all_are, service, [name], "accepted"), "it is accepted", 5.0)
    assert service.clients.activate(name, code).status == 200
    told(fault="its answer lost", again_after=seconds, mails=len(mails))


def test_slow(service: Site) -> None:
    """Every packet late by 150 ms each way: mails take the round trips that they take, and leave once."""
    with service.slow(service.post, 0.15):
        told(fault="slow", all_left=left(service, service.registered(4), 10.0))


@pytest.mark.slow
def test_slow_after_data(service: Site) -> None:
    """A server that thinks about a mail for longer than two leases keeps it: it leaves once."""
    service.smtp.stall()
    try:
        [name] = service.registered()
        wait_for(partial(all_are, service, [name], "sending"), "it is being sent", 5.0)
        threading.Event().wait(2 * LEASE_SECONDS + 5)  # the time that it thinks
        assert all_are(service, [name], "sending")
    finally:
        service.smtp.go_on()
    told(fault="slow after DATA", left=left(service, [name]))


@pytest.mark.slow
def test_a_mail_worker_killed_in_the_middle(service: Site) -> None:
    """Kill -9 while the server holds the mail: it leaves after the lease, from another worker, with the same code."""
    service.smtp.stall()
    try:
        [name] = service.registered()
        wait_for(partial(all_are, service, [name], "sending"), "it is being sent", 5.0)
        for pid in service.instance.titled("mail worker"):
            send(pid, signal.SIGKILL)
        wait_for(lambda: len(service.instance.titled("mail worker")) == 2, "both are back", 5.0)
    finally:
        service.smtp.go_on()
    seconds = wait_for(partial(all_are, service, [name], "accepted"), "it is accepted", LEASE_SECONDS + 5)
    [code] = set(service.codes(name))
    assert service.clients.activate(name, code).status == 200
    told(fault="mail worker killed in the middle", left_after=seconds)
