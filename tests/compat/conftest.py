"""The servers that rows share, and the table at the end: works, refused in one line, or untested and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.compat.databases import Servers
from tests.compat.install import versions
from tests.compat.setups import OUTCOME, Setup

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.smtp import SmtpServer
    from tests.servers.valkey import ValkeyServer

NAME_WIDTH = 58
TITLE = "set-ups"


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Give the PostgreSQL servers."""
    found = Servers(tmp_path_factory)
    yield found
    found.close()


@pytest.fixture
def row(
    smtp: SmtpServer,
    valkey_server: ValkeyServer,
    record_property: Callable[[str, object], None],
    tmp_path_factory: pytest.TempPathFactory,
) -> Setup:
    """Give the row, with an empty Valkey and a mail server; the test names the database."""
    valkey_server.empty()
    return Setup(tmp_path_factory.mktemp("s"), smtp, {"REDIS_URL": valkey_server.url}, record_property)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, a row for each test."""
    reports = [
        report
        for kind in ("passed", "skipped", "failed", "error")
        for report in terminalreporter.getreports(kind)
        if isinstance(report, pytest.TestReport) and "tests/compat/" in report.nodeid
    ]
    if reports:
        terminalreporter.section(TITLE)
        terminalreporter.write_line("\n".join(versions()) + "\n")
    for report in sorted(reports, key=lambda report: report.nodeid):
        terminalreporter.write_line(f"{name_of(report.nodeid):{NAME_WIDTH}} {outcome_of(report)}")


def name_of(nodeid: str) -> str:
    """Return how a row is called: its parameter, else its test's name in words."""
    module, _, test = nodeid.partition("::")
    area = module.rpartition("/test_")[2].removesuffix(".py")
    name, _, parameter = test.partition("[")
    return f"{area}: {parameter.removesuffix(']') or name.removeprefix('test_').replace('_', ' ')}"


def outcome_of(report: pytest.TestReport) -> str:
    """Return what became of a row."""
    if report.skipped and isinstance(report.longrepr, tuple):
        return report.longrepr[2].replace("Skipped: ", "untested: ")
    return str(dict(report.user_properties).get(OUTCOME, "works")) if report.passed else "FAILED"
