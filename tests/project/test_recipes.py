"""The bootstrap, the justfile and what CI runs: explained, in step with each other, made of files that exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
JUSTFILE = (ROOT / "justfile").read_text(encoding="utf-8")
RECIPE = re.compile(r"^(?P<name>[a-z_][\w-]*)(?: \*\w+)?:(?!=)(?P<needs>.*)\n(?P<body>(?:    .*\n?)+)", re.MULTILINE)
RECIPES = {match["name"]: match for match in RECIPE.finditer(JUSTFILE)}
PUBLIC = [name for name in RECIPES if not name.startswith("_")]
TOOLS = {"default", "_venv"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_recipe_says_in_one_line_what_it_does(name: str) -> None:
    """The line above a recipe is a comment, which `just` alone shows beside its name."""
    above = [line for line in JUSTFILE[: RECIPES[name].start()].splitlines() if not line.startswith("[")]
    assert re.match(r"# \S", above[-1])
    assert above[-2] == ""


@pytest.mark.parametrize("name", sorted(RECIPES.keys() - TOOLS))
def test_every_recipe_makes_the_environment_it_needs(name: str) -> None:
    """A recipe can be the first command in a fresh clone."""
    assert RECIPES[name]["needs"].strip() == "_venv"


@pytest.mark.parametrize("name", ["up", "test-slow", "bench", "chaos", "metrics", "smoke", "mail", "migrate"])
def test_long_running_recipes_become_their_program(name: str) -> None:
    """Signals reach the program itself, no shell stands between, and nothing is said after its own last line."""
    assert re.fullmatch(r"    @exec .+\n+", RECIPES[name]["body"])
    assert JUSTFILE[: RECIPES[name].start()].endswith("[no-exit-message]\n")


def test_the_readme_names_commands_that_exist() -> None:
    """Each `./dev …` in the documents and in CI is a recipe."""
    for file in ("README.md", "CONTRIBUTING.md", ".ci/run"):
        text = (ROOT / file).read_text(encoding="utf-8")
        for name in re.findall(r"\./dev ([a-z][\w-]*)", text):
            assert name in PUBLIC, f"{file}: {name}"


def test_ci_runs_what_the_readme_runs() -> None:
    """CI begins with the README's own test command, then the slow tests and the checks."""
    loop = re.search(r"^for recipe in (.+); do$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert loop is not None
    assert loop[1].split() == ["test", "test-slow", "check"]
    assert re.search(r"^\./dev test\b", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)


def test_scripts_can_be_run() -> None:
    """What people type is executable, and its shell or Python finds no mistake of syntax."""
    for name in ("dev", ".ci/run", "ops/deploy/make-secrets"):
        assert os.access(ROOT / name, os.X_OK), name
    for shell, name in (("bash", ".ci/run"), ("sh", "ops/deploy/make-secrets")):
        assert subprocess.run([shell, "-n", ROOT / name], check=False).returncode == 0


def test_hooks_are_local_and_are_those_of_the_checks() -> None:
    """The hooks fetch nothing, and each runs a tool that `just check` runs too."""
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    for hook in repositories[0]["hooks"]:
        assert hook["language"] == "system"
        assert " ".join(hook["entry"].split()[:1]) in RECIPES["check"]["body"]


@pytest.mark.parametrize("table", ["ignore", "per-file-ignores"])
def test_every_exception_from_the_linter_has_its_reason(table: str) -> None:
    """Each rule that is switched off in pyproject.toml has a comment beside it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lint = tomllib.loads(text)["tool"]["ruff"]["lint"]
    rules = lint["ignore"] if table == "ignore" else [rule for rules in lint[table].values() for rule in rules]
    for rule in rules:
        assert re.search(rf'^  "{rule}",\s*# \S', text, re.MULTILINE), rule


def test_a_machine_without_packages_hears_one_line(tmp_path: Path) -> None:
    """When pip cannot fetch the tools, the bootstrap says so, ends with 1 and leaves nothing half done."""
    for name in ("dev", "requirements-tools.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    ended = subprocess.run(
        [sys.executable, tmp_path / "dev", "up"],
        env={"PATH": os.defpath, "HOME": str(tmp_path), "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("dev: pip could not fetch")
    assert [path.name for path in (tmp_path / ".tools").iterdir()] == ["tools.lock"]
