from __future__ import annotations

import re
from pathlib import Path

from tests.faults import test_fault_mail, test_fault_postgres, test_fault_redis, test_fault_worker

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
ROW = re.compile(r"^\|.*\| `(\w+::[\w\[\]]+)` \|$", re.MULTILINE)
TABLED = {
    "postgres": test_fault_postgres,
    "redis": test_fault_redis,
    "mail": test_fault_mail,
    "worker": test_fault_worker,
}


def cases(name: str, test: object) -> set[str]:
    """Return the names of a test's faults: its own, or one for each that it is parametrized by."""
    for mark in getattr(test, "pytestmark", []):
        if mark.name == "parametrize" and "fault" in mark.args[0]:
            return {f"{name}[{value if isinstance(value, str) else value[0]}]" for value in mark.args[1]}
    return {name}


def test_every_fault_of_the_table_is_a_test_and_every_test_is_in_the_table() -> None:
    """What docs/operations.md promises about failing servers is tested, and what is tested is told there."""
    tests = {
        f"{server}::{case}"
        for server, module in TABLED.items()
        for name, test in vars(module).items()
        if name.startswith("test_")
        for case in cases(name.removeprefix("test_"), test)
    }
    assert set(ROW.findall(PAGE.read_text(encoding="utf-8"))) == tests
