"""The lock files: hashed, free of hosts, and in step with each other and with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock", "requirements-tools.lock"]


def pins(lock: str) -> dict[str, set[str]]:
    """Return the pinned versions by name; one name may have several, for different Pythons."""
    found: dict[str, set[str]] = {}
    for block in blocks(lock):
        requirement = Requirement(block[0])
        found.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    return found


def blocks(lock: str) -> list[list[str]]:
    """Return the requirement and its hashes, for each requirement of a lock."""
    logical = (ROOT / lock).read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [[part.strip() for part in re.split(r"\s+--hash=", line)] for line in logical if line.strip()]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_pin_is_exact_and_hashed(lock: str) -> None:
    """Each requirement names one version and at least one SHA-256."""
    for requirement, *hashes in blocks(lock):
        assert re.match(r"[a-z0-9._-]+==[^ ;]+", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", value) for value in hashes), requirement


@pytest.mark.parametrize("lock", LOCKS)
def test_no_lock_names_a_host(lock: str) -> None:
    """A lock holds no address and no index option: where packages come from is the machine's business."""
    text = (ROOT / lock).read_text(encoding="utf-8")
    assert "://" not in text
    assert "index" not in re.sub(r"^\S+==.*$", "", text, flags=re.MULTILINE)


def test_a_deployment_runs_what_the_tests_ran() -> None:
    """Every pin of requirements.lock stands in requirements-dev.lock too."""
    tested = pins("requirements-dev.lock")
    for name, versions in pins("requirements.lock").items():
        assert versions == tested.get(name), name


def test_the_locks_answer_pyproject() -> None:
    """Each dependency of pyproject.toml is pinned within its bounds, those of the service in both locks."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    for lock, wanted in [("requirements.lock", []), ("requirements-dev.lock", extras)]:
        pinned = pins(lock)
        for text in [*project["dependencies"], *wanted]:
            requirement = Requirement(text)
            versions = {version.removeprefix("==") for version in pinned[canonicalize_name(requirement.name)]}
            assert all(version in requirement.specifier for version in versions), f"{lock}: {text}"


def test_the_tools_answer_their_input() -> None:
    """Of uv and just both are pinned within the bounds of requirements-tools.in, and nothing else."""
    lines = (ROOT / "requirements-tools.in").read_text(encoding="utf-8").splitlines()
    wanted = {Requirement(line).name: Requirement(line) for line in lines if line and not line.startswith("#")}
    pinned = pins("requirements-tools.lock")
    assert pinned.keys() == wanted.keys() == {"uv", "rust-just"}
    for name, requirement in wanted.items():
        assert all(version.removeprefix("==") in requirement.specifier for version in pinned[name])
