from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.outage import site
from tests.faults.test_fault_postgres import LONG, outage
from tests.faults.test_fault_redis import hurt

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.outage import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give a service under Trio, whose threads hold their places until they end."""
    with site(tmp_path_factory.mktemp("t"), LOOP="trio") as one:
        yield one


def test_postgres_killed(service: Site) -> None:
    """As under uvloop."""
    outage(service, "killed (trio)", service.postgres.kill, service.postgres.start, LONG)


def test_postgres_stopped(service: Site) -> None:
    """As under uvloop."""
    outage(service, "stopped (trio)", service.postgres.stall, service.postgres.resume, LONG)


def test_postgres_half_open(service: Site) -> None:
    """As under uvloop."""
    forget = lambda: service.database.flow(forget=True)  # noqa: E731 - one way to heal it
    outage(service, "half-open (trio)", service.database.hold, forget, LONG)


def test_redis_stopped(service: Site) -> None:
    """As under uvloop."""
    with hurt(service, "stopped (trio)", service.redis.stall, service.redis.resume):
        assert service.clients.ready()
