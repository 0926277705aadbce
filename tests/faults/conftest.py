"""One service with servers of its own for each module of fault tests that asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.outage import site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.outage import Site


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Give the service; a test heals what it hurts."""
    with site(tmp_path_factory.mktemp("f")) as one:
        yield one
