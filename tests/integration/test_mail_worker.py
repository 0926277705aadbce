"""The mail worker as a process. One serves the whole module; tests that need another way to start or end add theirs."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, Self

import anyio
import psycopg
import pytest

from actors.domain.code import Keyring
from service.mail.worker import life_needed
from service.postgres.accounts import PostgresAccounts
from service.postgres.pool import Postgres
from service.processes.spawn import command
from service.redis.client import Redis
from service.redis.wakeups import TaskiqWakeups
from service.settings import Settings
from tests.fakes.accounts import POLICY
from tests.integration.conftest import new_account
from tests.servers.postgres import PostgresServer
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer
from tests.servers.waiting import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import LiteralString

    from tests.servers.smtp import Received

KEY: Final = b"1" * 32
KEYRING: Final = Keyring({"k1": KEY})
WORKER: Final = [*command("worker"), "--supervised"]
STATES: Final = "SELECT state FROM vestibule.mails ORDER BY created_at, id"
DISTINCT: Final = "SELECT DISTINCT state FROM vestibule.mails"


class Workers:
    """Mail worker processes around one database, Redis and mail server; the context ends them."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, smtp: SmtpServer) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
        self._environment = inherited | {
            "VESTIBULE_DATABASE_URL": database_url,
            "VESTIBULE_REDIS_URL": redis_url,
            "VESTIBULE_MAIL_URL": smtp.url,
            "VESTIBULE_MAIL_FROM": "Shop <shop@example.com>",
            "VESTIBULE_CODE_KEYS": f"k1:{base64.b64encode(KEY).decode()}",
        }
        self.database_url, self.redis_url, self.smtp = database_url, redis_url, smtp
        self.processes: list[subprocess.Popen[bytes]] = []
        self._log = folder / "worker.log"
        self._log.touch()
        self._begun = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def begin(self, output: BinaryIO, **settings: str) -> subprocess.Popen[bytes]:
        """Start one, which writes its log there."""
        environment = self._environment | {f"VESTIBULE_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen(WORKER, env=environment, stdout=output, stderr=output)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        self.processes.append(process)
        return process

    def start(self, number: int = 1, **settings: str) -> list[subprocess.Popen[bytes]]:
        """Start so many and wait until they work."""
        wanted = self.logged("mail worker started") + number
        with self._log.open("ab") as log:
            started = [self.begin(log, **settings) for _ in range(number)]
        wait_for(lambda: ended(started) or self.logged("mail worker started") == wanted, "they work", 60.0)
        assert not ended(started), self.log
        return started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the first one for the body: it claims nothing meanwhile."""
        self.processes[0].send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.processes[0].send_signal(signal.SIGCONT)

    def forget(self) -> None:
        """Begin anew: without accounts, mails and log."""
        with psycopg.connect(self.database_url) as connection:
            connection.execute("TRUNCATE vestibule.accounts, vestibule.business_counts CASCADE")
        self.smtp.mails.clear()
        self._begun = self._log.stat().st_size

    @property
    def log(self) -> str:
        """What they have logged."""
        return self._log.read_bytes()[self._begun :].decode()

    def logged(self, message: str) -> int:
        """Return how often they have logged it."""
        return self.log.count(f'"message":"{message}"')

    def logs(self, message: str) -> None:
        """Wait until one logs it."""
        wait_for(lambda: self.logged(message), f"it is logged: {message}", 60.0)

    def query(self, statement: LiteralString) -> list[Any]:
        """Ask the database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchall()

    def until(self, statement: LiteralString, *wanted: object) -> None:
        """Wait until the database answers so, row by row."""
        wait_for(lambda: [row[0] for row in self.query(statement)] == list(wanted), f"{wanted}: {statement}", 60.0)

    def owe(self, *names: str, wake: bool = False) -> None:
        """Register an account for each name, as an API worker does."""

        async def body() -> None:
            async with Postgres.open(self.database_url) as postgres:
                new = [new_account(f"{name}@example.com") for name in names]
                await PostgresAccounts(postgres, POLICY, "test").add(new)
                if wake:
                    async with Redis.open(self.redis_url) as redis:
                        await TaskiqWakeups(redis).wake([one.mail.id for one in new])

        anyio.run(body)

    def code(self) -> str:
        """Return the code that would activate the only account."""
        [(owner, mail, key_id)] = self.query(
            "SELECT account_id, id, key_id FROM vestibule.mails ORDER BY number DESC LIMIT 1"
        )
        return KEYRING.code(owner, mail, key_id)


def ended(processes: list[subprocess.Popen[bytes]]) -> bool:
    """Return whether one of them has ended."""
    return any(process.poll() is not None for process in processes)


def code_in(mail: Received) -> str:
    """Return the code of a mail: the one line of six digits."""
    [code] = [line for line in mail.text.splitlines() if len(line) == 6 and line.isdigit()]
    return code


@pytest.fixture(scope="module")
def running(postgres_server: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workers]:
    """Run a worker as `nohup` starts it."""
    database, folder = postgres_server.clone(), tmp_path_factory.mktemp("w")
    with (
        SmtpServer() as smtp,
        ValkeyServer(folder) as valkey,
        Workers(folder, postgres_server.url_of(database), valkey.url, smtp) as workers,
    ):
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        workers.start(log_level="DEBUG")
        signal.signal(signal.SIGHUP, before)
        yield workers
    postgres_server.drop(database)


@pytest.fixture
def workers(running: Workers) -> Workers:
    """Give the running worker with nothing to do."""
    running.forget()
    return running


def test_a_mail_leaves_without_a_wake_up_with_the_code_that_activates(workers: Workers) -> None:
    """The outcome and its counter are written together; the log tells no secret."""
    workers.owe("ada")
    [mail] = workers.smtp.wait_for(1)
    assert (mail.recipients, code_in(mail)) == (("ada@example.com",), workers.code())
    workers.until(STATES, "accepted")
    assert workers.query("SELECT sum(mails_accepted)::int FROM vestibule.business_counts") == [(1,)]
    workers.logs("mail accepted")
    assert [json.loads(line)["worker"] for line in workers.log.splitlines()]
    assert "@example.com" not in workers.log
    assert code_in(mail) not in workers.log


def test_a_mail_that_a_worker_is_woken_for_does_not_wait_for_the_next_sweep(workers: Workers) -> None:
    """Six mails, each owed when the one before has left: sweeps alone would take six seconds."""

    def six() -> bool:
        for number in range(1, 7):
            workers.owe(f"p{number}", wake=True)
            workers.smtp.wait_for(number)
        return True

    assert wait_for(six, "all have left") < patience(5.0)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE vestibule.mails SET expires_at = now() + interval '50 s' RETURNING id",
        "UPDATE vestibule.mails SET key_id = 'gone' RETURNING id",
    ],
)
def test_a_code_that_is_too_old_or_of_a_removed_key_is_replaced(workers: Workers, change: LiteralString) -> None:
    """After an outage or a change of keys people get a code that they can use."""
    with workers.paused():
        workers.owe("ada")
        [(old,)] = workers.query(change)
    [mail] = workers.smtp.wait_for(1)
    workers.until("SELECT state FROM vestibule.mails ORDER BY number", "superseded", "accepted")
    assert workers.query("SELECT id FROM vestibule.mails ORDER BY number")[0] == (old,)
    assert code_in(mail) == workers.code()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [(None, "connection refused at connect"), ("550 5.7.1 not this sender", "550 5.7.1 sender refused at MAIL")],
)
def test_after_an_outage_of_the_mail_server_all_mails_leave_soon(
    workers: Workers, reply: str | None, reason: str
) -> None:
    """The log warns once with the reason, which is on the mail that tried, and says when it is over."""
    if reply is None:
        workers.smtp.refuse()
    else:
        workers.smtp.answer(reply, at="MAIL", times=10)
    workers.owe(*(f"p{number}" for number in range(30)))
    workers.until("SELECT DISTINCT reason FROM vestibule.mails WHERE reason IS NOT NULL", reason)
    workers.until("SELECT sum(tries) >= 3 FROM vestibule.mails", True)  # noqa: FBT003 - a row's value
    if reply is None:
        workers.smtp.accept()
    workers.smtp.wait_for(30)
    workers.logs("mail server available again")
    workers.until(DISTINCT, "accepted")
    assert workers.logged("mail server unavailable") == 1
    assert f'"reason":"{reason}"' in workers.log
    assert len(workers.smtp.mails) == 30


def test_several_workers_send_each_mail_once_and_idle_ones_end_at_once(workers: Workers) -> None:
    """Four processes, swept and woken; three end within seconds and with 0, whichever signal asks, twice too."""
    started = workers.start(3)
    workers.owe(*(f"p{number}" for number in range(60)), wake=True)
    mails = workers.smtp.wait_for(60)
    workers.until(DISTINCT, "accepted")
    assert len({mail.recipients for mail in mails}) == len(workers.smtp.mails) == 60
    for process, how in zip(started, (signal.SIGTERM, signal.SIGINT, signal.SIGHUP), strict=True):
        process.send_signal(how)
        process.send_signal(how)
    assert [process.wait(patience(3)) for process in started] == [0, 0, 0]


def test_a_worker_that_shall_outlive_its_terminal_does(workers: Workers) -> None:
    """Under `nohup` a SIGHUP is nothing to it."""
    workers.processes[0].send_signal(signal.SIGHUP)
    workers.owe("ada")
    workers.smtp.wait_for(1)
    assert not workers.logged("mail worker stops")


def test_a_worker_that_is_told_to_stop_finishes_what_it_sends(workers: Workers) -> None:
    """The mail that the server already holds is not sent again, and no new one is claimed."""
    with workers.paused():
        workers.smtp.stall()
        workers.owe("ada")
        [process] = workers.start()
        workers.until(STATES, "sending")
        process.terminate()
        workers.logs("mail worker stops")
        workers.owe("bob")
        workers.smtp.go_on()
        assert process.wait(patience(5)) == 0
        assert len(workers.smtp.mails) == 1
        workers.until(STATES, "accepted", "queued")
    workers.until(DISTINCT, "accepted")


def test_a_send_that_stalls_past_the_grace_is_abandoned(workers: Workers) -> None:
    """Its lease ends, and another worker sends the mail with the same code."""
    with workers.paused():
        workers.smtp.stall()
        workers.owe("ada")
        [process] = workers.start(grace_seconds="1")
        workers.until(STATES, "sending")
        process.terminate()
        assert process.wait(patience(5)) == 0
        workers.smtp.go_on()
        assert workers.query("UPDATE vestibule.mails SET due_at = now() RETURNING state") == [("sending",)]
    [mail] = workers.smtp.wait_for(1)
    assert code_in(mail) == workers.code()
    workers.until(STATES, "accepted")


def test_a_worker_waits_for_postgres_and_redis_and_an_acceptance_outlives_a_death(
    data_dir: Path, smtp: SmtpServer, own_valkey: ValkeyServer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the mail server accepted while Postgres was away is written once it is back, and not sent again."""
    durable = {"synchronous_commit": "on"}  # what was claimed is still claimed after the kill
    with (
        PostgresServer(tmp_path_factory.mktemp("pg"), durable) as postgres,
        Workers(data_dir, postgres.url, own_valkey.url, smtp) as workers,
    ):
        workers.owe("ada")
        own_valkey.kill()
        postgres.stop()
        smtp.stall()
        [worker] = workers.start()
        workers.logs("the mail queue does not answer; asking again every second")
        postgres.start()
        workers.until(STATES, "sending")
        postgres.kill()
        smtp.go_on()
        smtp.wait_for(1)
        postgres.start()
        workers.until(STATES, "accepted")
        own_valkey.start()
        workers.owe("bob", wake=True)
        assert [mail.recipients for mail in smtp.wait_for(2)] == [("ada@example.com",), ("bob@example.com",)]
        workers.until(STATES, "accepted", "accepted")
        postgres.kill()
        worker.terminate()
        assert worker.wait(patience(3)) == 0


def test_log_lines_that_nobody_read_are_in_the_metrics(workers: Workers) -> None:
    """As those of a worker that has left: the mail worker is no API worker."""
    with Path("/dev/full").open("wb") as full:
        workers.begin(full)
    workers.until(
        "SELECT totals->>'log_lines_dropped' FROM vestibule.metrics_workers WHERE worker LIKE 'mail@%' AND leaving", "1"
    )


@pytest.mark.parametrize(("max_age", "needed"), [(900, 300), (120, 90)])
def test_a_code_leaves_with_its_minute_and_the_longest_dialogue_left_of_its_cap(max_age: int, needed: float) -> None:
    """Where the cap is short the dialogue gets half of what is beyond the minute, so that a new code can leave."""
    assert life_needed(Settings(code_max_age_seconds=max_age)) == needed
