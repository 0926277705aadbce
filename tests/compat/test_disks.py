"""Full disks under PostgreSQL, Redis, the logs and DATA_DIR: clear answers, nothing accepted and lost, no restart.

Each disk is a small file system in memory, filled by one large file.
"""

from __future__ import annotations

import os
import subprocess
from base64 import b64encode
from contextlib import ExitStack, contextmanager, suppress
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.e2e.post import CaughtMails
from tests.faults.clients import Clients, new
from tests.servers.postgres import PostgresServer
from tests.servers.smtp import SmtpServer
from tests.servers.valkey import ValkeyServer
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.e2e.instance import Instance

MOUNTS = (
    os.geteuid() == 0 and subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode == 0
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not MOUNTS, reason="this user may not mount file systems")]

LIMITS = ("REGISTER_LIMIT", "ACTIVATE_LIMIT", "PASSWORD_LIMIT", "PASSWORD_CLIENT_LIMIT", "BASIC_LIMIT", "CODE_LIMITS")
SETTINGS = {**dict.fromkeys(LIMITS, "off"), "WORKERS": "1", "CODE_KEYS": "k1:" + b64encode(bytes(32)).decode()}
BLOCK = 1 << 16
TRIES = 400  # registrations until a full disk is felt: what is written already may still have room
SOME = 60
RECOVERY_SECONDS = 30.0


class Disk:
    """A small disk that a test fills and empties."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def fill(self) -> None:
        """Leave no room."""
        with self._filler.open("ab", buffering=0) as file, suppress(OSError):
            while file.write(bytes(BLOCK)):
                pass

    def free(self) -> None:
        """Give the room back."""
        self._filler.unlink()


@contextmanager
def disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """Mount one."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


class Service:
    """A running service and whom it has mailed."""

    def __init__(self, instance: Instance, mailed: Callable[[], set[str]]) -> None:
        self.instance = instance
        self.clients = Clients(instance.port)
        self.accepted: list[str] = []
        self._mailed = mailed

    def registers(self) -> tuple[int, str]:
        """Register somebody new; return the status and the problem's code."""
        name = new()
        answer = self.clients.register(name)
        if answer.status == HTTPStatus.CREATED:
            self.accepted.append(name)
        return answer.status, answer.error

    def works_again(self) -> None:
        """Wait until registrations succeed, and show that nothing that was accepted is lost."""
        wait_for(lambda: self.registers()[0] == HTTPStatus.CREATED, "it takes registrations", RECOVERY_SECONDS)
        wait_for(
            lambda: {f"{name}@example.com" for name in self.accepted} <= self._mailed(),
            "every accepted registration is mailed",
            RECOVERY_SECONDS,
        )
        for name in self.accepted:
            assert self.clients.me(name).status == HTTPStatus.OK


@contextmanager
def service(folder: Path, settings: dict[str, str], postgres: Path, redis: Path) -> Iterator[Service]:
    """Run the service with its stores in these folders."""
    with ExitStack() as stack:
        enter = stack.enter_context
        durable = {"fsync": "on", "synchronous_commit": "on", "max_wal_size": "64MB"}
        stores = enter(PostgresServer(postgres, durable)), enter(ValkeyServer(redis))
        smtp = enter(SmtpServer())
        urls = dict(zip(("DATABASE_URL", "REDIS_URL"), (store.url for store in stores), strict=True))
        instance = enter(running(folder, "uvloop", SETTINGS | urls | {"MAIL_URL": smtp.url} | settings))
        yield Service(instance, lambda: {mail.recipients[0] for mail in list(smtp.mails)})


def made(folder: Path) -> Path:
    """Make a folder."""
    folder.mkdir()
    return folder


def until_refused(one: Service) -> tuple[int, str]:
    """Register until somebody is not taken; return that answer."""
    for _ in range(TRIES):
        answer = one.registers()
        if answer[0] != HTTPStatus.CREATED:
            return answer
    pytest.fail("the full disk was not felt")


def test_a_full_disk_under_postgres(tmp_path: Path) -> None:
    """Registrations are 503 that say whether they were handled, and go on when there is room; none is lost."""
    with (
        disk(tmp_path / "disk", 180) as small,
        service(tmp_path, {}, made(small.folder / "pg"), made(tmp_path / "rd")) as one,
    ):
        assert one.registers()[0] == HTTPStatus.CREATED
        small.fill()
        assert until_refused(one) in {(503, "StoreUnavailable"), (503, "OutcomeUnknown")}
        assert one.clients.ask("GET", "/api/v1/health").status in {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}
        small.free()
        one.works_again()


def test_a_full_disk_under_redis(tmp_path: Path) -> None:
    """Nobody notices but the operator: registrations and mails go on, the log names the cause."""
    with (
        disk(tmp_path / "disk", 8) as small,
        service(tmp_path, {"REGISTER_LIMIT": "1000/hour"}, made(tmp_path / "pg"), made(small.folder / "rd")) as one,
    ):
        assert one.registers()[0] == HTTPStatus.CREATED
        small.fill()
        assert {one.registers() for _ in range(SOME)} == {(201, "")}
        assert "MISCONF" in one.instance.said()
        small.free()
        one.works_again()


def test_a_full_disk_under_the_logs(tmp_path: Path) -> None:
    """Nobody notices: lines are lost and counted, answers are not."""
    with (
        disk(tmp_path / "disk", 1) as small,
        service(
            made(small.folder / "logs"),
            {"DATA_DIR": str(tmp_path / "data")},
            made(tmp_path / "pg"),
            made(tmp_path / "rd"),
        ) as one,
    ):
        small.fill()
        assert {one.registers() for _ in range(SOME)} == {(201, "")}
        small.free()
        one.works_again()


def test_a_full_disk_under_data_dir(tmp_path: Path) -> None:
    """With everything on one full disk registrations are 503, and go on when there is room; none is lost."""
    own = {"DATA_DIR": str(tmp_path / "disk" / "data")}
    with disk(tmp_path / "disk", 300) as small, running(tmp_path, "uvloop", SETTINGS | own) as instance:
        caught = CaughtMails(small.folder / "data" / "mails")
        one = Service(instance, lambda: {mail.to for mail in caught.mails()})
        assert one.registers()[0] == HTTPStatus.CREATED
        small.fill()
        assert until_refused(one) in {(503, "StoreUnavailable"), (503, "OutcomeUnknown")}
        small.free()
        one.works_again()
