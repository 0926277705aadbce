from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.chaos import run, table
from tests.faults.outage import told

if TYPE_CHECKING:
    from pathlib import Path


def test_nothing_is_lost_while_everything_is_killed(tmp_path: Path) -> None:
    """Each 201 has its account, its mail and a code that activates; nothing is stuck, and the counters are right."""
    report = run(seed=7, registrations=60, seconds=12.0, folder=tmp_path)
    told(fault="chaos", kills=sum(report.kills.values()), longest=report.longest, retries=report.retries)
    assert report.problems == [], table([report])
    assert report.created == report.accounts == 60
