"""One service with servers of its own for all tests of failing servers, under each loop; under Trio they are slow."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.outage import site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.outage import Site


@pytest.fixture(scope="session", params=["uvloop", pytest.param("trio", marks=pytest.mark.slow)])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the service; a test heals what it hurts."""
    with site(tmp_path_factory.mktemp("f"), request.param) as one:
        yield one
