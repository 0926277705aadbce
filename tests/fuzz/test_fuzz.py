from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import running
from tests.faults.hostile.conftest import LOOPS, OFF, unharmed
from tests.fuzz.parsers import READERS, fuzz
from tests.fuzz.wire import Wire

if TYPE_CHECKING:
    from pathlib import Path

FEW = 300


@pytest.mark.parametrize("name", READERS)
def test_no_input_breaks_a_reader(name: str) -> None:
    """Any input is read or refused, never anything else."""
    assert fuzz(name, FEW, start=7) >= FEW


@pytest.mark.parametrize("loop", LOOPS)
def test_no_bytes_make_a_500(tmp_path: Path, loop: str) -> None:
    """Nearly right requests get answers below 500, leave no traceback, and harm no worker."""
    with running(tmp_path, loop, dict.fromkeys(OFF, "off")) as instance, unharmed(instance):
        wire = Wire(instance.port, start=7)
        wire.send(FEW)
        assert {status for status in wire.statuses if status >= 500} <= {503}
        assert wire.statuses.total() == FEW
        assert wire.statuses[0] < FEW // 4
