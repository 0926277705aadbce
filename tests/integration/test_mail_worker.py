from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import anyio
import psycopg
import pytest

from actors.domain.code import Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.mail import MailKind
from actors.domain.user import CodePolicy
from actors.ports import NewMail, Register
from service.mail.worker import life_needed
from service.postgres.accounts import PostgresAccounts
from service.postgres.ids import uuid7
from service.postgres.pool import Postgres
from service.processes.spawn import command
from service.redis.client import Redis
from service.redis.wakeups import TaskiqWakeups
from service.settings import Settings
from tests.servers.postgres import PostgresServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import LiteralString

    from tests.servers.smtp import Received, SmtpServer
    from tests.servers.valkey import ValkeyServer

KEY: Final = b"1" * 32
KEYRING: Final = Keyring({"k1": KEY})
POLICY: Final = CodePolicy(attempts=5, ttl_seconds=60, max_age_seconds=900, cooldown_seconds=30, budgets=())
WORKER: Final = [*command("worker"), "--supervised"]
PATIENCE: Final = 60.0


class Workers:
    """Mail worker processes around one database, Redis and mail server."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, mail_url: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
        self.environment = inherited | {
            "VESTIBULE_DATABASE_URL": database_url,
            "VESTIBULE_REDIS_URL": redis_url,
            "VESTIBULE_MAIL_URL": mail_url,
            "VESTIBULE_MAIL_FROM": "Shop <shop@example.com>",
            "VESTIBULE_CODE_KEYS": f"k1:{base64.b64encode(KEY).decode()}",
        }
        self._log = folder / "worker.log"
        self._running = ExitStack()

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start one more and wait until it works."""
        [process] = self.start_all(1, **settings)
        return process

    def start_all(self, number: int, **settings: str) -> list[subprocess.Popen[bytes]]:
        """Start so many more and wait until they work."""
        wanted = self.logged("mail worker started") + number
        with self._log.open("ab") as log:
            processes = [self.begin(log, **settings) for _ in range(number)]
        self.wait(
            lambda: self.logged("mail worker started") == wanted or any(one.poll() is not None for one in processes)
        )
        assert all(one.poll() is None for one in processes), self.log
        return processes

    def begin(self, output: BinaryIO, **settings: str) -> subprocess.Popen[bytes]:
        """Start one more, which writes its log there."""
        environment = self.environment | {f"VESTIBULE_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen(WORKER, env=environment, stdout=output, stderr=output)
        self._running.callback(process.wait)
        self._running.callback(process.kill)
        return process

    @property
    def log(self) -> str:
        """What they have logged."""
        return self._log.read_text() if self._log.exists() else ""

    def logged(self, message: str) -> int:
        """Return how often they have logged it."""
        return self.log.count(f'"message":"{message}"')

    def stop(self) -> None:
        """Kill what still runs."""
        self._running.close()

    def query(self, statement: LiteralString) -> list[Any]:
        """Ask the database."""
        with psycopg.connect(self.environment["VESTIBULE_DATABASE_URL"]) as connection:
            return connection.execute(statement).fetchall()

    def until(self, statement: LiteralString, *wanted: object) -> None:
        """Wait until the database answers so, row by row."""
        self.wait(lambda: [row[0] for row in self.query(statement)] == list(wanted))

    @staticmethod
    def wait(reached: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until it is so."""

        async def look() -> None:
            with anyio.fail_after(patience):
                while not reached():  # noqa: ASYNC110 - a database and a log file tell no event
                    await anyio.sleep(0.02)

        anyio.run(look)

    def owe(self, *names: str, wake: bool = False) -> None:
        """Register an account for each name, as an API worker does."""

        async def body() -> None:
            async with Postgres.open(self.environment["VESTIBULE_DATABASE_URL"]) as postgres:
                new = [account(name) for name in names]
                await PostgresAccounts(postgres, POLICY, "test").add(new)
                if wake:
                    async with Redis.open(self.environment["VESTIBULE_REDIS_URL"]) as redis:
                        await TaskiqWakeups(redis).wake([one.mail.id for one in new])

        anyio.run(body)

    def code(self) -> str:
        """Return the code that would activate the only account."""
        [(owner, mail, key_id)] = self.query(
            "SELECT account_id, id, key_id FROM vestibule.mails ORDER BY number DESC LIMIT 1"
        )
        return KEYRING.code(owner, mail, key_id)


@pytest.fixture
def workers(tmp_path: Path, database: str, valkey: str, smtp: SmtpServer) -> Iterator[Workers]:
    """Give workers that end with the test."""
    around = Workers(tmp_path, database, valkey, smtp.url)
    yield around
    around.stop()


def account(name: str) -> Register:
    """Return a registration."""
    address = EmailAddress(f"{name}@example.com", f"{name}@example.com")
    return Register(uuid7(), address, b"$2b$12$right", "en", NewMail(uuid7(), MailKind.CODE, "k1"))


def code_in(mail: Received) -> str:
    """Return the code of a mail: the one line of six digits."""
    [code] = [line for line in mail.text.splitlines() if len(line) == 6 and line.isdigit()]
    return code


STATES: Final = "SELECT state FROM vestibule.mails ORDER BY created_at, id"


# -- what leaves


def test_a_mail_that_was_owed_before_the_start_leaves_with_the_code_that_activates(
    workers: Workers, smtp: SmtpServer
) -> None:
    """Nothing needs to wake the worker; the outcome and its counter are written together; the log tells no secret."""
    workers.owe("ada")
    workers.start(log_level="DEBUG")
    [mail] = smtp.wait_for(1)
    assert mail.recipients == ("ada@example.com",)
    assert code_in(mail) == workers.code()
    workers.until(STATES, "accepted")
    assert workers.query("SELECT sum(mails_accepted)::int, sum(mails_dead)::int FROM vestibule.business_counts") == [
        (1, 0)
    ]
    workers.wait(lambda: workers.logged("mail accepted") == 1)
    assert [json.loads(line)["worker"] for line in workers.log.splitlines()]
    assert "@example.com" not in workers.log
    assert code_in(mail) not in workers.log


def test_a_mail_that_a_worker_is_woken_for_does_not_wait_for_the_next_sweep(workers: Workers, smtp: SmtpServer) -> None:
    """Six mails, each owed when the one before has left: sweeps alone would take six seconds."""
    workers.start()
    workers.owe("first", wake=True)
    smtp.wait_for(1)

    async def body() -> None:
        with anyio.fail_after(5):
            for number in range(2, 8):
                await anyio.to_thread.run_sync(partial(workers.owe, f"p{number}", wake=True))
                await anyio.to_thread.run_sync(smtp.wait_for, number)

    anyio.run(body)


def test_several_workers_send_each_mail_once(workers: Workers, smtp: SmtpServer) -> None:
    """Sixty mails, swept and woken for by three processes."""
    workers.start_all(3)
    workers.owe(*(f"p{number}" for number in range(60)), wake=True)
    mails = smtp.wait_for(60)
    workers.until("SELECT DISTINCT state FROM vestibule.mails", "accepted")
    assert len({mail.recipients for mail in mails}) == len(smtp.mails) == 60


def test_a_deferred_mail_leaves_later_as_the_same_mail(workers: Workers, smtp: SmtpServer) -> None:
    """A lost answer waits out its back-off; what arrives twice is the same."""
    smtp.hang_up()
    workers.start()
    workers.owe("ada", wake=True)
    first, second = smtp.wait_for(2)
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert code_in(first) == code_in(second) == workers.code()
    workers.until("SELECT tries FROM vestibule.mails WHERE state = 'accepted'", 2)


def test_a_refused_mail_is_dead_and_the_others_leave(workers: Workers, smtp: SmtpServer) -> None:
    """An unknown mailbox costs its own mail, with the reason in words and without the address."""
    smtp.answer("550 5.1.1 ada@example.com unknown", at="RCPT")
    workers.owe("ada", "bob", "eve")
    workers.start()
    smtp.wait_for(2)
    workers.until("SELECT state FROM vestibule.mails ORDER BY state", "accepted", "accepted", "dead")
    assert workers.query("SELECT reason FROM vestibule.mails WHERE state = 'dead'") == [
        ("550 5.1.1 no such mailbox at RCPT",)
    ]
    assert workers.query("SELECT sum(mails_accepted)::int, sum(mails_dead)::int FROM vestibule.business_counts") == [
        (2, 1)
    ]


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vestibule.mails SET expires_at = now() + interval '50 s' RETURNING id",
        "UPDATE vestibule.mails SET key_id = 'gone' RETURNING id",
    ],
)
def test_a_code_that_is_too_old_or_of_a_removed_key_is_replaced(
    workers: Workers, smtp: SmtpServer, change: LiteralString
) -> None:
    """After an outage or a change of keys people get a code that they can use."""
    workers.owe("ada")
    [(old,)] = workers.query(change)
    workers.start()
    [mail] = smtp.wait_for(1)
    workers.until("SELECT state FROM vestibule.mails ORDER BY number", "superseded", "accepted")
    assert workers.query("SELECT id FROM vestibule.mails ORDER BY number")[0] == (old,)
    assert code_in(mail) == workers.code()


# -- servers that are away


def test_mails_leave_while_redis_is_away(workers: Workers, smtp: SmtpServer, own_valkey: ValkeyServer) -> None:
    """Redis only shortens the way: killed under the worker, or away at its start, no mail waits for it."""
    workers.environment["VESTIBULE_REDIS_URL"] = own_valkey.url
    first = workers.start()
    workers.owe("a", wake=True)
    smtp.wait_for(1)
    own_valkey.kill()
    workers.owe("b", "c", wake=True)
    smtp.wait_for(3)
    first.terminate()
    assert first.wait(3) == 0
    second = workers.start()
    workers.owe("d", wake=True)
    smtp.wait_for(4)
    own_valkey.start()
    workers.owe("e", wake=True)
    smtp.wait_for(5)
    assert second.poll() is None


def test_a_worker_waits_for_postgres_and_an_acceptance_outlives_its_death(
    workers: Workers, smtp: SmtpServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the mail server accepted while Postgres was away is written once it is back, and not sent again."""
    durable = {"synchronous_commit": "on"}  # what was claimed is still claimed after the kill
    with PostgresServer(tmp_path_factory.mktemp("pg"), durable) as postgres:
        workers.environment["VESTIBULE_DATABASE_URL"] = postgres.url
        workers.owe("ada")
        postgres.stop()
        smtp.stall()
        worker = workers.start()
        workers.wait(lambda: workers.logged("the mail queue does not answer; asking again every second") == 1)
        postgres.start()
        workers.until(STATES, "sending")
        postgres.kill()
        smtp.go_on()
        smtp.wait_for(1)
        postgres.start()
        workers.until(STATES, "accepted")
        workers.owe("bob", wake=True)
        assert [mail.recipients for mail in smtp.wait_for(2)] == [("ada@example.com",), ("bob@example.com",)]
        workers.until(STATES, "accepted", "accepted")
        postgres.kill()
        worker.terminate()
        assert worker.wait(3) == 0


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(None, "connection refused at connect"), ("550 5.7.1 not this sender", "550 5.7.1 not permitted at MAIL")],
)
def test_after_an_outage_of_the_mail_server_all_mails_leave_soon(
    workers: Workers, smtp: SmtpServer, reply: str | None, reason: str
) -> None:
    """The log warns once with the reason, which is on the mail that tried, and says when it is over."""
    if reply is None:
        smtp.refuse()
    else:
        smtp.answer(reply, at="MAIL", times=10)
    workers.owe(*(f"p{number}" for number in range(30)))
    workers.start()
    workers.until("SELECT DISTINCT reason FROM vestibule.mails WHERE reason IS NOT NULL", reason)
    workers.wait(lambda: workers.query("SELECT sum(tries) FROM vestibule.mails")[0][0] >= 3)
    if reply is None:
        smtp.accept()
    smtp.wait_for(30)
    workers.wait(lambda: workers.logged("mail server available again") == 1)
    workers.until("SELECT DISTINCT state FROM vestibule.mails", "accepted")
    assert workers.logged("mail server unavailable") == 1
    assert f'"reason":"{reason}"' in workers.log
    assert len(smtp.mails) == 30


# -- ends


@contextmanager
def hanging_up(to: signal.Handlers) -> Iterator[None]:
    """Have children begin with this disposition of SIGHUP."""
    before = signal.signal(signal.SIGHUP, to)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_idle_worker_ends_at_once(workers: Workers) -> None:
    """Within three seconds and with 0, whichever signal asks, and asked twice too."""
    with hanging_up(signal.SIG_DFL):
        processes = workers.start_all(3)
    for process, how in zip(processes, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), strict=True):
        process.send_signal(how)
        process.send_signal(how)
    assert [process.wait(3) for process in processes] == [0, 0, 0]


def test_a_worker_that_shall_outlive_its_terminal_does(workers: Workers, smtp: SmtpServer) -> None:
    """Under `nohup` a SIGHUP is nothing to it."""
    with hanging_up(signal.SIG_IGN):
        workers.start().send_signal(signal.SIGHUP)
    workers.owe("ada")
    smtp.wait_for(1)
    assert not workers.logged("mail worker stops")


def test_a_worker_that_is_told_to_stop_finishes_what_it_sends(workers: Workers, smtp: SmtpServer) -> None:
    """The mail that the server already holds is not sent again, and no new one is claimed."""
    smtp.stall()
    workers.owe("ada")
    process = workers.start()
    workers.until(STATES, "sending")
    process.terminate()
    workers.wait(lambda: workers.logged("mail worker stops") == 1)
    workers.owe("bob")
    smtp.go_on()
    assert process.wait(5) == 0
    assert len(smtp.mails) == 1
    workers.until(STATES, "accepted", "queued")


def test_a_send_that_stalls_past_the_grace_is_abandoned(workers: Workers, smtp: SmtpServer) -> None:
    """Its lease ends, and another worker sends the mail."""
    smtp.stall()
    workers.owe("ada")
    process = workers.start(grace_seconds="1")
    workers.until(STATES, "sending")
    process.terminate()
    assert process.wait(5) == 0
    workers.until(STATES, "sending")


def test_a_mail_whose_worker_was_killed_leaves_again_with_the_same_code(workers: Workers, smtp: SmtpServer) -> None:
    """At least once: the repeat is the same mail to a server and to a reader."""
    smtp.stall()
    workers.owe("ada")
    process = workers.start()
    workers.until(STATES, "sending")
    with psycopg.connect(workers.environment["VESTIBULE_DATABASE_URL"]) as holding:
        holding.execute("SELECT FROM vestibule.mails FOR UPDATE")  # so that the acceptance cannot be written
        smtp.go_on()
        smtp.wait_for(1)
        process.kill()
        process.wait()
    workers.query("UPDATE vestibule.mails SET due_at = now() RETURNING id")
    workers.start()
    first, second = smtp.wait_for(2)
    assert code_in(first) == code_in(second) == workers.code()
    assert first.message["Message-ID"] == second.message["Message-ID"]
    workers.until("SELECT tries FROM vestibule.mails WHERE state = 'accepted'", 2)


@pytest.mark.slow
def test_a_send_that_stalls_past_its_lease_stays_with_its_worker(workers: Workers, smtp: SmtpServer) -> None:
    """The lease of fifteen seconds is renewed while the server takes its time, so nobody sends the mail again."""
    smtp.stall()
    workers.owe("ada")
    workers.start()
    workers.start()
    workers.until(STATES, "sending")
    workers.wait(
        lambda: workers.query("SELECT now() > created_at + interval '20 s' FROM vestibule.mails") == [(True,)], 30.0
    )
    smtp.go_on()
    workers.until(STATES, "accepted")
    assert workers.query("SELECT tries FROM vestibule.mails") == [(1,)]
    assert len(smtp.mails) == 1


# -- around it


@pytest.mark.parametrize(("max_age", "needed"), [(900, 300), (120, 90)])
def test_a_code_leaves_with_its_minute_and_the_longest_dialogue_left_of_its_cap(max_age: int, needed: float) -> None:
    """Where the cap is short the dialogue gets half of what is beyond the minute, so that a new code can leave."""
    assert life_needed(Settings(code_max_age_seconds=max_age)) == needed


def test_settings_that_could_make_no_mail_stop_the_start_with_one_line(workers: Workers) -> None:
    """Before a mail needs them, and before anything is opened."""
    environment = workers.environment | {"VESTIBULE_MAIL_FROM": "no@body@"}
    result = subprocess.run(WORKER, env=environment, capture_output=True, text=True, check=False, timeout=20)
    assert result.returncode != 0
    [line] = result.stderr.splitlines()
    assert line.endswith("VESTIBULE_MAIL_FROM: must be an address, or Name <address>")


def test_log_lines_that_nobody_read_are_in_the_metrics(workers: Workers) -> None:
    """As those of a worker that has left: the mail worker is no API worker."""
    with Path("/dev/full").open("wb") as full:
        workers.begin(full)
    workers.until(
        "SELECT totals->>'log_lines_dropped' FROM vestibule.metrics_workers WHERE worker LIKE 'mail@%' AND leaving", "1"
    )
