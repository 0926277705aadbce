"""One service under each loop for all hostile clients; after each of them it must be as if nothing had happened."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.faults.hostile.raw import LIVEZ, ask
from tests.servers.waiting import titled

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance

FAULTS = ("Traceback", "unhandled error", "worker failed", "connection failed", '"level":"CRITICAL"')
OFF = ("REGISTER_LIMIT", "ACTIVATE_LIMIT", "PASSWORD_LIMIT", "PASSWORD_CLIENT_LIMIT", "BASIC_LIMIT")
LOOPS = [pytest.param(name, marks=pytest.mark.xdist_group(f"hostile-{name}")) for name in ("uvloop", "trio")]


@contextmanager
def unharmed(instance: Instance) -> Iterator[None]:
    """Hold the service to the same processes, to a log without faults, and to an answer for somebody else."""
    before, seen = titled(instance.process.pid, "api worker"), len(instance.said())
    yield
    assert ask(instance.port, LIVEZ).status == 200
    assert titled(instance.process.pid, "api worker") == before
    said = instance.said()[seen:]
    assert [fault for fault in FAULTS if fault in said] == []


@pytest.fixture(scope="session", params=LOOPS)
def running_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Run the service without limits on registrations."""
    with running(tmp_path_factory.mktemp("h"), request.param, dict.fromkeys(OFF, "off")) as instance:
        yield instance


@pytest.fixture
def service(running_service: Instance) -> Iterator[Instance]:
    """Give the service for one test, which must not harm it."""
    with unharmed(running_service):
        yield running_service
