"""Debian's Postfix as the relay, configured as its operators do, and the service behind its rules."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pytest

from tests.compat.certificates import Certificates
from tests.compat.postfix import NEEDS, Postfix, can_run
from tests.compat.smtp_script import ScriptedServer
from tests.compat.whole_service import whole_service
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.compat.whole_service import Service
    from tests.servers.postgres import PostgresServer
    from tests.servers.valkey import ValkeyServer

    Record = Callable[[str, object], None]

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_run(), reason=NEEDS)]

HELD_SECONDS = 3.0
ELSEWHERE = {"mynetworks": "192.0.2.0/24"}
REFUSALS: dict[str, tuple[str, dict[str, str]]] = {  # what health and log say, and the lines of main.cf
    "reject_non_fqdn_helo_hostname": (
        "504 5.5.2 host name refused at RCPT",
        {"smtpd_helo_restrictions": "reject_non_fqdn_helo_hostname"},
    ),
    "reject_unknown_helo_hostname": (
        "450 4.7.1 host name refused at RCPT",
        {"smtpd_helo_restrictions": "reject_unknown_helo_hostname"},
    ),
    "name refused at EHLO": (
        "504 5.5.2 host name refused at EHLO",
        {"smtpd_helo_restrictions": "reject_non_fqdn_helo_hostname", "smtpd_delay_reject": "no"},
    ),
    "relay access denied, defer_unauth_destination": ("454 4.7.1 relaying denied at RCPT", ELSEWHERE),
    "relay access denied, reject_unauth_destination": (
        "554 5.7.1 relaying denied at RCPT",
        ELSEWHERE | {"smtpd_relay_restrictions": "permit_mynetworks, reject_unauth_destination"},
    ),
    "smtpd_client_restrictions = reject": ("554 5.7.1 not permitted at RCPT", {"smtpd_client_restrictions": "reject"}),
    "reject_unknown_sender_domain": (
        "450 4.1.8 sender refused at RCPT",
        {"smtpd_sender_restrictions": "reject_unknown_sender_domain"},
    ),
    "reject_unlisted_sender": (
        "550 5.1.0 sender refused at RCPT",
        {
            "virtual_mailbox_domains": "shop.invalid",
            "virtual_mailbox_maps": "inline:{sales@shop.invalid=sales}",
            "smtpd_sender_restrictions": "reject_unlisted_sender",
        },
    ),
    "TLS demanded": ("530 5.7.0 encryption required at MAIL", {"smtpd_tls_security_level": "encrypt"}),
    "queue_minfree": ("452 4.3.1 no room at the server at MAIL", {"queue_minfree": "9000000000000000000"}),
    "smtpd_client_message_rate_limit": (
        "450 4.7.1 too much for the server at MAIL",
        {"smtpd_client_message_rate_limit": "1", "smtpd_client_event_limit_exceptions": ""},
    ),
    "soft_bounce": ("454 4.7.1 not permitted at RCPT", {"soft_bounce": "yes", "smtpd_client_restrictions": "reject"}),
}


@dataclass(frozen=True, slots=True)
class Relayed:
    """A service, its relay, and the server that the relay passes mails on to."""

    service: Service
    relay: Postfix
    server: ScriptedServer


@pytest.fixture(scope="module")
def relayed(
    postgres_server: PostgresServer, valkey_server: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Relayed]:
    """Give a service whose host name and sender some relays refuse, behind a Postfix that does not yet."""
    folder, database = tmp_path_factory.mktemp("s"), postgres_server.clone()
    with TemporaryDirectory() as queue, ScriptedServer() as server, Postfix(Path(queue), server.port) as relay:
        stores = {"DATABASE_URL": postgres_server.url_of(database), "REDIS_URL": valkey_server.url}
        ours = {"MAIL_EHLO": "app-7f9c", "MAIL_FROM": "Shop <no-reply@shop.invalid>"}
        with whole_service(folder, stores | ours | {"MAIL_URL": f"smtp://127.0.0.1:{relay.port}"}) as service:
            yield Relayed(service, relay, server)
    postgres_server.drop(database)


def test_mails_go_through_its_queue(relayed: Relayed, record_property: Record) -> None:
    """The whole walk, and a crowd."""
    seconds = relayed.service.walks(relayed.server.codes, 10.0)
    people = relayed.service.registered(20)
    wait_for(lambda: relayed.service.states(people) == {"accepted"}, "a crowd", 10.0)
    assert relayed.service.notes() == []
    record_property("outcome", f"works: a mail in {seconds:.1f} s")


@pytest.mark.parametrize("name", REFUSALS)
def test_its_rules_hold_mails_up_and_kill_none(
    name: str, relayed: Relayed, tmp_path: Path, record_property: Record
) -> None:
    """Whatever is refused about us is seen at once, with one line; all mails leave after `postfix reload`."""
    says, lines = REFUSALS[name]
    service, before = relayed.service, len(relayed.service.said())
    if "smtpd_tls_security_level" in lines:
        made = Certificates.made_in(tmp_path)
        lines = lines | {"smtpd_tls_chain_files": f"{made.key}, {made.certificate}"}
    relayed.relay.restart(lines)
    people = service.registered(6, "example.com", "example.net")
    seen = wait_for(lambda: any(says in note for note in service.notes()), f"health says {says}", 10.0)
    threading.Event().wait(HELD_SECONDS)
    assert service.states(people) <= {"queued", "sending", "accepted"}
    relayed.relay.reload({})
    mended = wait_for(lambda: service.states(people) == {"accepted"}, "all mails have left", 15.0)
    wait_for(lambda: all(relayed.server.codes(address) for address in people), "and have arrived", 10.0)
    wait_for(lambda: "mail server available again" in service.said()[before:], "the log says that it is over", 3.0)
    log = [line for line in service.said()[before:].splitlines() if '"mail server unavailable' in line]
    assert log, "a limit may end and begin anew in between"
    assert all(says in line for line in log), log
    record_property("outcome", f"seen after {seen:.1f} s, all left {mended:.1f} s after its end: {says}")


def test_a_recipient_that_it_does_not_know_is_dead_at_once(relayed: Relayed, record_property: Record) -> None:
    """Its own domain's unknown user is a refusal of that mail alone."""
    lines = {"virtual_mailbox_domains": "example.org", "smtpd_reject_unlisted_recipient": "yes"}
    relayed.relay.restart(lines | {"virtual_mailbox_maps": "inline:{postmaster@example.org=postmaster}"})
    [unknown] = relayed.service.registered(1, "example.org")
    wait_for(lambda: relayed.service.states([unknown]) == {"undeliverable"}, "it is dead", 10.0)
    people = relayed.service.registered(2, "example.com", "example.net")
    wait_for(lambda: relayed.service.states(people) == {"accepted"}, "others leave", 5.0)
    relayed.relay.reload({})
    record_property("outcome", "dead at once, others leave")
