from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.chaos import run

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """Each 201 has its account, its mail and a code that activates; nothing is stuck, and the counters are right."""
    figures, lost = run(seed=7, registrations=40, seconds=8.0, folder=tmp_path)
    assert lost == [], figures
    assert "40 registered, 40 active" in figures
