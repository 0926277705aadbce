"""The wheel: what is installed has all that the service reads at run time."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Return the built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_every_file_of_the_packages_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Modules, migrations, templates, pages: whatever lies in the packages' folders, but for caches."""
    files = {
        str(path.relative_to(ROOT))
        for package in ("actors", "service")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert any(name.endswith(".sql") for name in files)
    assert files <= set(wheel.namelist())


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """No test, tool or document is installed beside the packages."""
    assert {name.partition("/")[0] for name in wheel.namelist()} == {"actors", "service", "vestibule-0.1.0.dist-info"}


def test_the_command_is_installed(wheel: zipfile.ZipFile) -> None:
    """The wheel brings the console command and the licence."""
    entry_points = wheel.read("vestibule-0.1.0.dist-info/entry_points.txt").decode()
    assert "vestibule = service.cli:main" in entry_points
    assert "vestibule-0.1.0.dist-info/licenses/LICENSE" in wheel.namelist()
