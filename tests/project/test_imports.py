"""What may be imported where, as lists of what is allowed: import-linter only knows what is forbidden."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from pathlib import Path

import pytest

import actors

ROOT = Path(__file__).parents[2]


def imported(path: Path) -> set[str]:
    """Return the top-level packages that a module imports, for type checking too."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def modules(folder: str) -> list[Path]:
    """Return the modules of a package."""
    return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("path", modules("actors"), ids=lambda path: str(path.relative_to(ROOT)))
def test_actors_import_anyio_and_the_standard_library_alone(path: Path) -> None:
    """No framework and no driver is in reach of what we mean; the domain does without AnyIO too."""
    allowed = {"actors"} if "domain" in path.parts else {"actors", "anyio"}
    assert imported(path) - sys.stdlib_module_names <= allowed


@pytest.mark.parametrize("folder", ["actors", "service"])
def test_package_files_hold_a_docstring_only(folder: str) -> None:
    """Importing a package runs nothing: each `__init__.py` is one docstring."""
    for path in modules(folder):
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, path
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


@pytest.mark.parametrize("name", sorted(module.name for module in pkgutil.walk_packages(actors.__path__, "actors.")))
def test_every_module_of_the_actors_can_be_imported_by_itself(name: str) -> None:
    """Those that only hold Protocols are read by type checkers alone, and must be sound all the same."""
    assert importlib.import_module(name).__doc__
