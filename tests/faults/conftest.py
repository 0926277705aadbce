"""One service with servers of its own for each module of fault tests that asks for it, one stand-in for each loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.outage import site
from tests.faults.under_test import running
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.outage import Site
    from tests.faults.under_test import Running


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the service; a test heals what it hurts."""
    with site(tmp_path_factory.mktemp("f")) as one:
        yield one


@pytest.fixture(scope="session", params=["uvloop", "asyncio", "trio"])
def stand_in(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Give a stand-in with two workers and a sleeper; a test heals what it hurts, and it must still end in order."""
    folder = tmp_path_factory.mktemp("s")
    cost = folder / "cost"
    cost.write_text("12", encoding="utf-8")
    port, loop = free_ports(1), str(request.param)
    with running(folder, port, "sleeper", loop=loop, VESTIBULE_BCRYPT_COST_FILE=str(cost)) as one:
        yield one
        one.process.terminate()
        assert one.process.wait(15) == 0
