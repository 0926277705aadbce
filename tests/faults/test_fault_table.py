from __future__ import annotations

import re
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parents[1] / "docs" / "operations.md"
ROW = re.compile(r"^\|.*\| `(\w+)::(\w+)` \|$", re.MULTILINE)
TEST = re.compile(r"^def test_(\w+)", re.MULTILINE)
TABLED = ("postgres", "redis", "mail", "worker")


def test_every_fault_of_the_table_is_a_test_and_every_test_is_in_the_table() -> None:
    """What docs/operations.md promises about failing servers is tested, and what is tested is told there."""
    tests = {
        (server, name)
        for server in TABLED
        for name in TEST.findall((FOLDER / f"test_fault_{server}.py").read_text(encoding="utf-8"))
    }
    assert set(ROW.findall(PAGE.read_text(encoding="utf-8"))) == tests
