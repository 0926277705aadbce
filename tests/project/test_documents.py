"""The documents: every setting is there, every link leads somewhere, every decision is listed."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest
from pydantic import SecretStr

from service.cli import vestibule
from service.setting_values import Trusted
from service.settings import PREFIX, Settings, load

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs" / "operations.md"
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
DIAGRAMS = {"flowchart", "sequenceDiagram", "stateDiagram-v2"}
MADE = {"database_url", "redis_url", "mail_url", "code_keys", "mail_templates", "workers"}  # defaults in words


def documents() -> list[Path]:
    """Return every Markdown file of the project."""
    listed = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    return [ROOT / name for name in listed.split()] or [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@cache
def anchors(document: Path) -> set[str]:
    """Return the anchors that the headings of a document give."""
    headings = re.findall(r"^#+ +(.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def prose(document: Path) -> str:
    """Return a document without its code blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def rows() -> dict[str, str]:
    """Return the settings of docs/operations.md with their defaults, as written."""
    return dict(re.findall(r"^\| `VESTIBULE_(\w+)` \| (.+?) \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE))


def test_every_setting_is_documented_once() -> None:
    """The tables of settings name what the service reads, all of it and nothing else."""
    named = re.findall(r"^\| `VESTIBULE_(\w+)` \|", OPERATIONS.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)


@pytest.mark.parametrize("name", sorted(Settings.model_fields.keys() - MADE))
def test_documented_defaults_are_the_defaults(name: str) -> None:
    """The default as written, given to the service, changes nothing."""
    written = rows()[name.upper()]
    if written in {"unset", "empty"}:
        assert getattr(Settings(), name) in {None, (), Trusted()}
        return
    given = load({PREFIX + name.upper(): written.strip("`")})
    assert getattr(given, name) == getattr(Settings(), name)


@pytest.mark.parametrize("name", sorted(MADE - {"workers"}))
def test_defaults_in_words_are_unset(name: str) -> None:
    """Where the table says in words what happens, the setting itself is unset."""
    assert getattr(Settings(), name) is None


def test_secrets_are_of_a_type_that_hides_them() -> None:
    """No setting that may hold a secret shows it in the repr of the settings."""
    shown = repr(Settings(ops_token=SecretStr("top"), code_keys={"k1": b"secret" * 6}))
    assert "top" not in shown
    assert "secretsecret" not in shown


def test_every_command_is_documented() -> None:
    """The operator's page names each word of the console command."""
    text = OPERATIONS.read_text(encoding="utf-8")
    words: list[str] = []
    for name, command in vestibule.commands.items():
        if isinstance(command, click.Group):
            words += [f"{name} {word}" for word in command.commands]
        elif not command.hidden:
            words.append(name)
    assert [word for word in words if f"`vestibule {word}" not in text] == []


@pytest.mark.parametrize("script", sorted((ROOT / "ops").glob("*.py")), ids=lambda path: path.name)
def test_every_program_of_ops_is_documented(script: Path) -> None:
    """The operator's page names each program of ops, but for the modules that they share."""
    if "__main__" in script.read_text(encoding="utf-8"):
        assert f"`python ops/{script.name}`" in OPERATIONS.read_text(encoding="utf-8")


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    """Each relative link names a file of the project, and an anchor in it that a heading gives."""
    for target in LINK.findall(prose(document)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        assert ROOT in [file, *file.parents], target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_fit_an_editor(document: Path) -> None:
    """Lines of prose have at most 130 characters; tables may be as wide as they need."""
    long = [line for line in prose(document).splitlines() if len(line) > 130 and not line.startswith(("|", "- ["))]
    assert long == []


def test_diagrams_are_of_known_kinds() -> None:
    """Each mermaid block begins with a kind of diagram and closes every block that it opens."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```mermaid\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        assert block.split()[0] in DIAGRAMS
        opened = re.findall(r"^\s*(?:subgraph|alt|loop|opt|par)\b", block, re.MULTILINE)
        assert len(opened) == len(re.findall(r"^\s*end$", block, re.MULTILINE))


def test_the_ask_graph_has_no_circle() -> None:
    """The drawing of who asks whom is a directed graph without circles, so that nothing can wait for itself."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawing = text.partition("Who asks whom")[2].partition("```mermaid")[2].partition("```")[0]
    edges = {(start, end) for start, end in re.findall(r"^\s*(\w+)\S*.*?--> (\w+)", drawing, re.MULTILINE)}
    assert len(edges) > 8
    while edges:
        leaves = {end for _, end in edges} - {start for start, _ in edges}
        assert leaves, f"a circle among {edges}"
        edges = {(start, end) for start, end in edges if end not in leaves}


def test_every_decision_is_listed() -> None:
    """The index of the decision records names each of them, in order and without a gap."""
    index = (ROOT / "docs" / "adr" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\d{4})\]\((\d{4}-[\w-]+\.md)\)", index, re.MULTILINE)
    assert [name for _, name in listed] == sorted(file.name for file in (ROOT / "docs" / "adr").glob("0*.md"))
    assert [number for number, _ in listed] == [f"{place:04}" for place in range(1, len(listed) + 1)]


@pytest.mark.parametrize("record", sorted((ROOT / "docs" / "adr").glob("0*.md")), ids=lambda path: path.name)
def test_decisions_have_the_same_parts(record: Path) -> None:
    """Each record has its number, a status, the forces, the decision and what follows."""
    text = record.read_text(encoding="utf-8")
    assert text.startswith(f"# {record.name[:4]}: ")
    for part in ("Status: ", "## Forces", "## Decision", "## What follows", "## Also weighed"):
        assert part in text, part


def test_the_changelog_keeps_its_form() -> None:
    """The changelog has a place for what is not released yet, and known kinds of changes only."""
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "\n## [Unreleased]\n" in text
    kinds = set(re.findall(r"^### (.+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
