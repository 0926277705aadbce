from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final
from uuid import UUID, uuid4

import anyio
import psycopg
import pytest

from actors.domain.code import CodeId, Keyring
from actors.domain.email_address import EmailAddress
from actors.domain.tally import Tally
from actors.ports import NewAccount
from service.adapters.postgres import Postgres
from service.adapters.postgres_accounts import PostgresAccounts
from service.adapters.postgres_metrics import PostgresMetrics
from service.adapters.postgres_migrations import migrate
from service.adapters.redis_client import Redis
from service.adapters.redis_metrics import RedisMetrics
from service.adapters.taskiq_wakeups import TaskiqWakeups
from service.embedded.launcher import stop
from service.embedded.postgres import EmbeddedPostgres
from service.metrics_reader import Reader
from tests.fakes.accounts import DEFAULTS
from tests.servers.own_redis import OwnRedis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import LiteralString

    from actors.metrics_ports import Metrics
    from tests.servers.smtp import Received, SmtpServer

KEY: Final = b"1" * 32
KEYRING: Final = Keyring({"k1": KEY})
VESTIBULE: Final = Path(sys.executable).parent / "vestibule"
PATIENCE: Final = 15.0


class Workers:
    """Mail worker processes around one database, Redis and mail server."""

    def __init__(self, folder: Path, database_url: str, redis_url: str, mail_url: str) -> None:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
        self.environment = inherited | {
            "VESTIBULE_DATABASE_URL": database_url,
            "VESTIBULE_REDIS_URL": redis_url,
            "VESTIBULE_MAIL_URL": mail_url,
            "VESTIBULE_MAIL_FROM": "Shop <shop@example.com>",
            "VESTIBULE_DATA_DIR": str(folder / "data"),
            "VESTIBULE_CODE_KEYS": f"k1:{base64.b64encode(KEY).decode()}",
        }
        self.database_url = database_url
        self.redis_url = redis_url
        self._log = folder / "worker.log"
        self._running = ExitStack()

    def start(self, **settings: str) -> subprocess.Popen[bytes]:
        """Start one more and wait until it works."""
        before = self.said().count("mail worker started")
        with self._log.open("ab") as log:
            process = self.begin(log, **settings)
        self.wait(lambda: self.said().count("mail worker started") > before or process.poll() is not None)
        assert process.poll() is None, self.said()
        return process

    def begin(self, output: BinaryIO, **settings: str) -> subprocess.Popen[bytes]:
        """Start one more, which writes its log there."""
        environment = self.environment | {f"VESTIBULE_{name.upper()}": value for name, value in settings.items()}
        process = subprocess.Popen([VESTIBULE, "worker", "--supervised"], env=environment, stdout=output, stderr=output)
        self._running.callback(process.wait)
        self._running.callback(process.kill)
        return process

    def said(self) -> str:
        """Return what they have logged."""
        return self._log.read_text() if self._log.exists() else ""

    def stop(self) -> None:
        """Kill what still runs."""
        self._running.close()

    def query(self, statement: LiteralString) -> list[Any]:
        """Ask the database."""
        with psycopg.connect(self.database_url) as connection:
            return connection.execute(statement).fetchall()

    def until(self, statement: LiteralString, *wanted: object) -> None:
        """Wait until the database answers so, row by row."""
        self.wait(lambda: [row[0] for row in self.query(statement)] == list(wanted))

    @staticmethod
    def wait(reached: Callable[[], bool], patience: float = PATIENCE) -> None:
        """Wait until it is so."""

        async def look() -> None:
            with anyio.fail_after(patience):
                while not reached():  # noqa: ASYNC110 - a database and a log file ring no bell
                    await anyio.sleep(0.02)

        anyio.run(look)


@pytest.fixture
def workers(tmp_path: Path, database_url: str, redis_url: str, smtp_catcher: SmtpServer) -> Iterator[Workers]:
    """Give workers that end with the test."""
    around = Workers(tmp_path, database_url, redis_url, smtp_catcher.url)
    yield around
    around.stop()


def owe(workers: Workers, *names: str, ring: bool = False) -> list[UUID]:
    """Register somebody for each name, as an API worker does, and return their mails."""

    async def body() -> list[UUID]:
        async with Postgres.open(workers.database_url) as postgres, Redis.open(workers.redis_url) as redis:
            new = [account(name) for name in names]
            await PostgresAccounts(postgres, DEFAULTS, "test").register(new)
            if ring:
                await TaskiqWakeups(redis).ring([one.mail_id for one in new])
            return [one.mail_id for one in new]

    return anyio.run(body)


def account(name: str) -> NewAccount:
    """Return a registration."""
    address = f"{name}@example.com"
    return NewAccount(
        id=uuid4(),
        registration=uuid4(),
        email=EmailAddress(address, address),
        password_hash=b"$2b$12$right",
        locale="en",
        code_id=KEYRING.code_id(uuid4()),
        mail_id=uuid4(),
    )


def code_in(mail: Received) -> str:
    """Return the code of a mail: the one line of six digits."""
    [code] = [line for line in mail.text.splitlines() if len(line) == 6 and line.isdigit()]
    return code


def current_code(workers: Workers) -> str:
    """Return the code that would activate the only account."""
    [(user, code_id)] = workers.query("SELECT id, code_id FROM users")
    return KEYRING.code(user, CodeId.parse(code_id))


def test_a_mail_that_was_owed_before_the_start_leaves_with_the_code_that_activates(
    workers: Workers, smtp_catcher: SmtpServer
) -> None:
    """Nothing needs to ring; the outcome and its counter are written together."""
    owe(workers, "ada")
    workers.start()
    [mail] = smtp_catcher.wait_for(1)
    assert mail.recipients == ("ada@example.com",)
    assert code_in(mail) == current_code(workers)
    workers.until("SELECT state FROM mails", "accepted")
    assert workers.query("SELECT code_mail FROM users") == [("accepted",)]
    assert workers.query("SELECT sum(mails_accepted)::int, sum(mails_dead)::int FROM business_counts") == [(1, 0)]


def test_a_rung_mail_does_not_wait_for_the_next_look(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """Six mails, each owed when the one before has left: looks alone would take six seconds."""
    workers.start()
    owe(workers, "first", ring=True)
    smtp_catcher.wait_for(1)

    async def body() -> None:
        with anyio.fail_after(5):
            for number in range(2, 8):
                await anyio.to_thread.run_sync(partial(owe, workers, f"p{number}", ring=True))
                await anyio.to_thread.run_sync(smtp_catcher.wait_for, number)

    anyio.run(body)


def test_mails_leave_while_redis_is_away_and_after_it_was_killed(
    workers: Workers, smtp_catcher: SmtpServer, tmp_path: Path
) -> None:
    """Redis only shortens the way: killed under the worker, or away at its start, no mail waits for it."""
    with OwnRedis(tmp_path) as redis:
        workers.redis_url = workers.environment["VESTIBULE_REDIS_URL"] = redis.url
        first = workers.start()
        owe(workers, "a", ring=True)
        smtp_catcher.wait_for(1)
        redis.kill()
        owe(workers, "b", "c", ring=True)
        smtp_catcher.wait_for(3)
        assert first.poll() is None
        first.kill()
        second = workers.start()
        owe(workers, "d", ring=True)
        smtp_catcher.wait_for(4)
        redis.start()
        owe(workers, "e", ring=True)
        smtp_catcher.wait_for(5)
        assert second.poll() is None


@contextmanager
def hanging_up(to: signal.Handlers) -> Iterator[None]:
    """Have children begin with this way to take a SIGHUP."""
    before = signal.signal(signal.SIGHUP, to)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_idle_worker_ends_at_once(workers: Workers, how: signal.Signals) -> None:
    """Within three seconds and with 0, asked twice too."""
    with hanging_up(signal.SIG_DFL):
        process = workers.start()
    process.send_signal(how)
    process.send_signal(how)
    assert process.wait(3) == 0


def test_a_worker_that_shall_outlive_its_terminal_does(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """Under `nohup` a SIGHUP is nothing to it."""
    with hanging_up(signal.SIG_IGN):
        workers.start().send_signal(signal.SIGHUP)
    owe(workers, "ada")
    smtp_catcher.wait_for(1)
    assert "mail worker stops" not in workers.said()


def test_an_idle_worker_ends_at_once_without_redis(workers: Workers, tmp_path: Path) -> None:
    """An outage does not hold the end up."""
    with OwnRedis(tmp_path) as redis:
        workers.environment["VESTIBULE_REDIS_URL"] = redis.url
        process = workers.start()
        redis.kill()
        process.terminate()
        assert process.wait(3) == 0


def test_a_worker_that_is_told_to_stop_finishes_the_send_that_runs(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """The mail that the server already holds is not sent again, and no new one is taken."""
    smtp_catcher.stall()
    owe(workers, "ada")
    process = workers.start()
    workers.until("SELECT state FROM mails", "sending")
    process.terminate()
    workers.wait(lambda: "mail worker stops" in workers.said())
    owe(workers, "bob")
    smtp_catcher.go_on()
    assert process.wait(5) == 0
    assert len(smtp_catcher.mails) == 1
    workers.until("SELECT state FROM mails ORDER BY created_at", "accepted", "queued")


def test_a_send_that_stalls_past_the_grace_is_abandoned(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """The lease gives the mail to another worker."""
    smtp_catcher.stall()
    owe(workers, "ada")
    process = workers.start(grace_seconds="1")
    workers.until("SELECT state FROM mails", "sending")
    process.terminate()
    assert process.wait(5) == 0
    workers.until("SELECT state FROM mails", "sending")


def test_a_mail_whose_worker_was_killed_leaves_again_with_the_same_code(
    workers: Workers, smtp_catcher: SmtpServer
) -> None:
    """At least once: the repeat is the same mail to a server and to a reader."""
    smtp_catcher.stall()
    owe(workers, "ada")
    process = workers.start()
    workers.until("SELECT state FROM mails", "sending")
    with psycopg.connect(workers.database_url) as holding:
        holding.execute("SELECT FROM mails FOR UPDATE")  # so that the acceptance cannot be written
        smtp_catcher.go_on()
        smtp_catcher.wait_for(1)
        process.kill()
        process.wait()
    workers.query("UPDATE mails SET due_at = now() RETURNING id")
    workers.start()
    first, second = smtp_catcher.wait_for(2)
    assert code_in(first) == code_in(second) == current_code(workers)
    assert first.message["Message-ID"] == second.message["Message-ID"]
    workers.until("SELECT attempts FROM mails", 2)


def test_a_deferred_mail_leaves_later_as_the_same_mail(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """A 4xx and a lost answer wait out their back-off; what arrives twice is the same."""
    smtp_catcher.answer("451 4.3.0 later")
    smtp_catcher.hang_up()
    workers.start()
    owe(workers, "ada", ring=True)
    first, second = smtp_catcher.wait_for(2)
    assert first.message["Message-ID"] == second.message["Message-ID"]
    assert code_in(first) == code_in(second) == current_code(workers)
    workers.until("SELECT attempts FROM mails WHERE state = 'accepted'", 3)


def test_a_refused_mail_is_dead_and_its_neighbours_leave(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """A 5xx buries one mail, with its codes as the reason."""
    smtp_catcher.answer("550 5.1.1 ada@example.com unknown", at="RCPT")
    owe(workers, "ada", "bob", "eve")
    workers.start()
    smtp_catcher.wait_for(2)
    workers.until("SELECT state FROM mails ORDER BY state", "accepted", "accepted", "dead")
    assert workers.query("SELECT reason FROM mails WHERE state = 'dead'") == [("550 5.1.1 at RCPT",)]
    assert workers.query("SELECT sum(mails_accepted)::int, sum(mails_dead)::int FROM business_counts") == [(2, 1)]


def test_a_code_with_too_little_life_is_replaced(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """After an outage of mail people get a code that they can still use."""
    owe(workers, "ada")
    [(old,)] = workers.query("UPDATE users SET code_expires_at = now() + interval '50 s' RETURNING code_id")
    workers.start()
    [mail] = smtp_catcher.wait_for(1)
    assert workers.query("SELECT code_id FROM users") != [(old,)]
    assert code_in(mail) == current_code(workers)


def test_a_code_of_a_removed_key_is_replaced(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """A mail that waited over a change of keys carries a code of the new one."""
    owe(workers, "ada")
    workers.query("UPDATE users SET code_id = 'gone.' || substr(code_id, 4) RETURNING 1")
    workers.query("UPDATE mails SET code_id = 'gone.' || substr(code_id, 4) RETURNING 1")
    workers.start()
    [mail] = smtp_catcher.wait_for(1)
    assert code_in(mail) == current_code(workers)


def test_several_workers_send_each_mail_once(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """Sixty mails, rung for and looked for by three processes."""
    for _ in range(3):
        workers.start()
    owe(workers, *(f"p{number}" for number in range(60)), ring=True)
    mails = smtp_catcher.wait_for(60)
    workers.until("SELECT DISTINCT state FROM mails", "accepted")
    assert len({mail.recipients for mail in mails}) == len(smtp_catcher.mails) == 60


def test_an_acceptance_outlives_a_killed_database(workers: Workers, smtp_catcher: SmtpServer, tmp_path: Path) -> None:
    """The mail that the server took while Postgres was away is written once it is back, and not sent again."""
    server = EmbeddedPostgres(tmp_path / "pg")  # durable: what was claimed is still claimed after the kill
    pid = server.start()
    try:
        server.wait_ready(pid)
        migrate(server.url)
        workers.database_url = workers.environment["VESTIBULE_DATABASE_URL"] = server.url
        smtp_catcher.stall()
        owe(workers, "ada")
        workers.start()
        workers.until("SELECT state FROM mails", "sending")
        stop(pid, signal.SIGKILL)
        smtp_catcher.go_on()
        smtp_catcher.wait_for(1)
        pid = server.start()
        server.wait_ready(pid)
        workers.until("SELECT state FROM mails", "accepted")
        owe(workers, "bob", ring=True)
        assert [mail.recipients for mail in smtp_catcher.wait_for(2)] == [("ada@example.com",), ("bob@example.com",)]
    finally:
        stop(pid, server.stop_signal)


@pytest.mark.slow
def test_a_send_that_stalls_past_its_lease_is_left_to_its_worker(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """The lease of fifteen seconds is renewed while the server takes its time, so nobody sends the mail again."""
    smtp_catcher.stall()
    owe(workers, "ada")
    workers.start()
    workers.start()
    workers.until("SELECT state FROM mails", "sending")
    workers.wait(lambda: workers.query("SELECT now() > created_at + interval '20 s' FROM mails") == [(True,)], 30.0)
    smtp_catcher.go_on()
    workers.until("SELECT state FROM mails", "accepted")
    assert workers.query("SELECT attempts FROM mails") == [(1,)]
    assert len(smtp_catcher.mails) == 1


def test_the_log_holds_no_address_and_no_code(workers: Workers, smtp_catcher: SmtpServer) -> None:
    """Lines of JSON with ids and reply codes."""
    smtp_catcher.answer("550 5.1.1 ada@example.com unknown", at="RCPT")
    owe(workers, "ada", "bob")
    workers.start(log_level="DEBUG")
    [mail] = smtp_catcher.wait_for(1)
    workers.until("SELECT DISTINCT state FROM mails ORDER BY 1", "accepted", "dead")
    workers.wait(lambda: "mail dead" in workers.said() and "mail accepted" in workers.said())
    said = workers.said()
    assert [json.loads(line)["worker"] for line in said.splitlines()]
    assert "@example.com" not in said
    assert code_in(mail) not in said


def test_settings_that_could_make_no_mail_stop_the_start_with_one_line(workers: Workers) -> None:
    """Before a mail needs them, and before anything is opened."""
    environment = workers.environment | {"VESTIBULE_MAIL_FROM": "nobody"}
    result = subprocess.run(
        [VESTIBULE, "worker", "--supervised"], env=environment, capture_output=True, text=True, check=False, timeout=20
    )
    assert result.returncode == 2
    assert result.stderr.splitlines() == ["vestibule: VESTIBULE_MAIL_FROM: must be an address, or Name <address>"]


def test_log_lines_that_nobody_took_are_in_the_metrics(workers: Workers) -> None:
    """Counted with those of the API workers, without making the mail worker one of them, and when it is gone too."""

    async def metrics() -> Metrics:
        async with Postgres.open(workers.database_url) as postgres, Redis.open(workers.redis_url) as redis:
            ledger = PostgresMetrics(postgres)
            return await Reader(Tally("api-1.test"), RedisMetrics(redis), ledger, ledger).read()

    with Path("/dev/full").open("wb") as full:
        process = workers.begin(full)
    workers.until("SELECT totals->>'log_lines_dropped' FROM metrics_workers WHERE worker LIKE 'mail@%'", "1")
    process.kill()
    process.wait()
    read = anyio.run(metrics)
    assert (read.totals["log_lines_dropped"], read.workers) == (1, 1)
