"""One service under each loop for all hostile clients; after each of them it must be as if nothing had happened."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.faults.hostile.raw import LIVEZ, ask

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance

FAULTS = ("Traceback", "unhandled error", "worker failed", "connection failed", '"level":"CRITICAL"')
OFF = ("REGISTER_LIMIT", "ACTIVATE_LIMIT", "PASSWORD_LIMIT", "PASSWORD_CLIENT_LIMIT", "BASIC_LIMIT")
SHOP, PROXY = "https://shop.example.com", "127.0.0.9"
SETTINGS = {
    "CORS_ORIGINS": f"{SHOP},http://localhost:3000",
    "TRUSTED_PROXIES": f"{PROXY}/32,10.0.0.0/8,fd00::/8",
    "REGISTER_LIMIT": "2/hour",
}


@contextmanager
def unharmed(instance: Instance) -> Iterator[None]:
    """Hold the service to the same processes, to a log without faults, and to an answer for somebody else."""
    before, seen = instance.titled("api worker"), len(instance.said())
    yield
    assert ask(instance.port, LIVEZ).status == 200
    assert instance.titled("api worker") == before
    said = instance.said()[seen:]
    assert [fault for fault in FAULTS if fault in said] == []


@pytest.fixture(scope="session", params=["uvloop", "trio"])
def running_service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Run the service behind a proxy, two registrations an hour for each client, without a token."""
    with running(tmp_path_factory.mktemp("h"), request.param, SETTINGS) as instance:
        yield instance


@pytest.fixture
def service(running_service: Instance) -> Iterator[Instance]:
    """Give the service for one test, which must not harm it."""
    with unharmed(running_service):
        yield running_service
