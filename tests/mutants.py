"""Change actors/ in some two thousand small ways and count the changes that no unit test notices: `just mutants`.

mutmut makes the changes and picks the tests that reach each; `[tool.mutmut]` in pyproject.toml names the tests. It
changes what stands in functions: constants of modules and classes, and decorated functions, stay as they are. This
program starts it afresh, since mutmut keeps its verdicts while only the tests change, and adds a score for each module
and a floor.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

MUTMUT = Path(sys.executable).with_name("mutmut")
# Noticed too: a change that makes the tests hang, and one with which they cannot be imported ("interrupted").
KILLED = frozenset({"killed", "timeout", "segfault", "check was interrupted by user"})
UNJUDGED = frozenset({"not checked", "skipped"})


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="just mutants", description="Count the changes that no unit test notices.")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="such as actors.signup or actors.kit; all without")
    parser.add_argument("--floor", type=float, default=0.0, metavar="PER_CENT", help="end with 1 below this score")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="mutants tried at a time (default: 2)")
    parser.add_argument("--survivors", action="store_true", help="show every change that no test notices")
    return parser.parse_args()


def run(modules: Iterable[str], processes: int) -> bool:
    """Try every mutant of `modules`, or of all; return False when the tests fail without a mutant."""
    shutil.rmtree("mutants", ignore_errors=True)
    names = [f"{module}.*" for module in modules]
    return subprocess.run([MUTMUT, "run", f"--max-children={processes}", *names], check=False).returncode == 0


def ask(*command: str) -> str:
    """Return what mutmut says about the run."""
    return subprocess.run([MUTMUT, *command], check=True, capture_output=True, text=True).stdout


def verdicts() -> dict[str, str]:
    """Return what became of each mutant that was tried, by its name: `actors.signup.xǁSignUpǁregister__mutmut_7`."""
    lines = ask("results", "--all=true").splitlines()
    pairs = (line.strip().rpartition(": ") for line in lines if "__mutmut_" in line)
    return {name: verdict for name, _, verdict in pairs if verdict not in UNJUDGED}


def score(killed: int, tried: int) -> float:
    """Return the share of mutants killed, in per cent."""
    return 100 * killed / tried


def report(found: Mapping[str, str]) -> Iterator[str]:
    """Yield a line for each module and one for all."""
    tried: defaultdict[str, Counter[bool]] = defaultdict(Counter)
    for mutant, verdict in found.items():
        for row in (mutant.rpartition(".")[0], "total"):
            tried[row][verdict in KILLED] += 1
    for row in sorted(tried, key=lambda name: (name == "total", name)):
        killed, total = tried[row][True], tried[row].total()
        yield f"{row:32} {killed:5} of {total:5} {score(killed, total):7.2f} %"


def main() -> int:
    """Print the survivors and the scores; return 1 below the floor and 2 when there is no score."""
    options = arguments()
    found = verdicts() if run(options.modules, options.processes) else {}
    if not found:
        sys.stderr.write("no score: a test fails without a mutant, or there is no such module\n")
        return 2
    survivors = sorted(mutant for mutant, verdict in found.items() if verdict not in KILLED)
    shown = [ask("show", mutant) if options.survivors else f"{found[mutant]}: {mutant}" for mutant in survivors]
    sys.stdout.write("\n".join(["", *shown, *report(found), ""]))
    return 1 if score(len(found) - len(survivors), len(found)) < options.floor else 0


if __name__ == "__main__":
    sys.exit(main())
