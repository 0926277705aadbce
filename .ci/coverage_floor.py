"""Hold the coverage of packages to floors: `coverage_floor.py actors=100 service=90`, run after the tests.

Lines and branches are two figures, and each must reach the floor: averaged, well-covered lines would hide branches that
no test takes. Prints one line per package, and the files to blame when it is below its floor; ends with 1 then.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 160


@dataclass(slots=True)
class Tally:
    """What was covered of what there is."""

    lines: int = 0
    all_lines: int = 0
    branches: int = 0
    all_branches: int = 0

    def add(self, summary: dict[str, Any]) -> None:
        """Count one file's summary of the JSON report in."""
        self.lines += summary["covered_lines"]
        self.all_lines += summary["num_statements"]
        self.branches += summary["covered_branches"]
        self.all_branches += summary["num_branches"]

    def reaches(self, floor: float) -> bool:
        """Whether lines and branches are both covered to `floor` per cent."""
        return 100 * self.lines >= floor * self.all_lines and 100 * self.branches >= floor * self.all_branches

    def __str__(self) -> str:
        return f"lines {self.lines}/{self.all_lines}, branches {self.branches}/{self.all_branches}"


def report() -> dict[str, Any]:
    """Combine what the processes of the tests have written and return coverage's JSON report."""
    coverage = [sys.executable, "-m", "coverage"]
    late = [*coverage, "combine", "--quiet", "--append"]  # what ended after pytest; to find nothing is no error
    subprocess.run(late, check=False, capture_output=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "coverage.json"
        subprocess.run([*coverage, "json", "--quiet", "-o", str(file)], check=True)
        return dict(json.loads(file.read_text(encoding="utf-8")))


def missing(details: dict[str, Any]) -> str:
    """Name the lines and branches of a file that no test takes, as far as they fit a line."""
    lines = [str(line) for line in details["missing_lines"]]
    branches = [f"{start}->{end}" for start, end in details["missing_branches"]]
    return textwrap.shorten(" ".join([*lines, *branches]), WIDTH, placeholder=" ...")


def below(package: str, floor: float, files: dict[str, Any]) -> bool:
    """Print a package's tally, and when it is below the floor the files that keep it there; return whether it is."""
    ours = {name: details for name, details in sorted(files.items()) if name.startswith(f"{package}/")}
    whole = Tally()
    for details in ours.values():
        whole.add(details["summary"])
    if whole.reaches(floor):
        print(f"coverage of {package}: {whole}: reaches the floor of {floor:g} %")
        return False
    for name, details in ours.items():
        alone = Tally()
        alone.add(details["summary"])
        if not alone.reaches(floor):
            print(f"  {name}: {alone}: {missing(details)}")
    print(f"coverage of {package}: {whole}: BELOW the floor of {floor:g} %")
    return True


def main() -> None:
    """Print the tallies and end with 1 when one is below its floor."""
    files = report()["files"]
    floors = [argument.partition("=") for argument in sys.argv[1:]]
    missed = [below(package, float(floor), files) for package, _, floor in floors]
    raise SystemExit(any(missed))


if __name__ == "__main__":
    main()
