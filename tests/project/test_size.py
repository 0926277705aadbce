"""The size, the shape and the words of the project: it may shrink, and grow by a twentieth of what it was."""

from __future__ import annotations

import ast
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_COUNTED = {ROOT / "ops" / "bench", ROOT / "tests" / "compat"}
GROWTH = 1.05
REACHED = {  # lines of code, with what lies below; benchmarks and the table of set-ups aside
    "actors": 1937,
    "actors/domain": 532,
    "actors/kit": 249,
    "ops": 510,
    "service": 7322,
    "service/embedded": 662,
    "service/http": 1444,
    "service/mail": 1053,
    "service/postgres": 1235,
    "service/processes": 916,
    "service/redis": 432,
    "service/telemetry": 443,
    "tests": 14041,
}
DIRECTLY_IN_SERVICE = 8  # modules: what has no package yet
# Pictures for which the field has a plain word.
# fmt: off
PICTURES = {
    "visits", "errand", "errands", "letter", "letters", "ring", "desk", "desks", "roster", "turnstile", "pulse",
    "stranger", "strangers", "surroundings", "machinery", "postman", "bury", "fallen", "welcome", "pretend",
    "employ", "hasten", "freshen", "keeper", "shadow", "shadows", "handover", "holdings",
}
# fmt: on
FOLDER, MODULE, FUNCTION = 14, 400, 40  # at most: modules in a folder, lines of code in a module and in a function
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def modules(area: str) -> list[Path]:
    """Return the counted modules of a top-level folder."""
    return [path for path in sorted((ROOT / area).rglob("*.py")) if NOT_COUNTED.isdisjoint(path.parents)]


def lines_of_code(path: Path) -> set[int]:
    """Return the numbers of the lines that hold code: no blanks, comments and docstrings."""
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in SILENT]
    lines = {line for token in tokens for line in range(token.start[0], token.end[0] + 1)}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Documented) and ast.get_docstring(node) is not None:
            lines -= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    return lines


@pytest.mark.parametrize("area", REACHED)
def test_the_project_stays_small(area: str) -> None:
    """A folder has at most a twentieth more lines of code than it had."""
    assert sum(len(lines_of_code(path)) for path in modules(area)) <= REACHED[area] * GROWTH


@pytest.mark.parametrize("area", ["actors", "service", "ops"])
def test_modules_and_functions_are_read_in_one_go(area: str) -> None:
    """No folder, module or function is longer than a reader can hold."""
    for folder in {path.parent for path in modules(area)}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= FOLDER, folder
    for path in modules(area):
        lines = lines_of_code(path)
        assert len(lines) <= MODULE, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = lines & set(range(node.lineno, (node.end_lineno or 0) + 1))
                inner = [one for one in ast.walk(node) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
                for one in inner[1:]:
                    own -= set(range(one.lineno, (one.end_lineno or 0) + 1))
                assert len(own) <= FUNCTION, f"{path.name}: {node.name}"


def test_few_modules_stand_beside_the_packages_of_service() -> None:
    """What lies directly in service/ belongs to all of them."""
    assert len([path for path in (ROOT / "service").glob("*.py") if path.name != "__init__.py"]) <= DIRECTLY_IN_SERVICE


@pytest.mark.parametrize("area", ["actors", "service", "ops"])
def test_names_are_plain_words(area: str) -> None:
    """No module, class or function is named by a picture of what it is."""
    for path in modules(area):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = [node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        for name in [path.stem, *named]:
            words = set(re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower().split("_"))
            assert not PICTURES & words, f"{path.name}: {name}"
