from __future__ import annotations

import os
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.under_test import running, wait_for
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.under_test import Running

AT_TERMINAL = [sys.executable, str(Path(__file__).with_name("at_terminal.py"))]


def test_a_terminal_that_is_closed_stops_the_service_in_order(tmp_path: Path) -> None:
    """SIGHUP is a reload as long as the terminal is there, and a stop as soon as it is gone; exit code 0."""
    with _on_terminal(tmp_path) as (service, close):
        service.hang_up()
        wait_for(lambda: "reloaded" in service.said(), "SIGHUP is a reload")
        close()
        assert service.process.wait(10) == 0
        assert '"signal":"SIGHUP"' in service.said()
        assert service.said().count("drained ") == 4


def test_a_terminal_that_is_closed_during_the_start_ends_it(tmp_path: Path) -> None:
    """Whoever closes the terminal before the service is ready is left with nothing either."""
    (tmp_path / "version").write_text("slow", encoding="utf-8")
    with _on_terminal(tmp_path, ready=False) as (service, close):
        wait_for(lambda: len(service.master.children()) == 2, "the workers are being started")
        close()
        wait_for(lambda: '"signal":"SIGHUP"' in service.said(), "the order to stop")
        service.version.write_text("v1", encoding="utf-8")
        assert service.process.wait(10) == 0


def test_under_nohup_the_service_outlives_its_terminal(tmp_path: Path) -> None:
    """Who ignores SIGHUP at the start means it: the terminal closes, and SIGHUP is a reload still."""
    with _on_terminal(tmp_path, "nohup") as (service, close):
        close()
        wait_for(lambda: "reloaded" in service.said(), "the kernel's SIGHUP is a reload")
        assert service.get()[0] == 200
        service.process.terminate()
        assert service.process.wait(10) == 0


@contextmanager
def _on_terminal(folder: Path, *before: str, ready: bool = True) -> Iterator[tuple[Running, Callable[[], None]]]:
    """Run the stand-in on a terminal of its own; give what closes the terminal, too."""
    ours, theirs = os.openpty()
    try:
        with running(folder, free_ports(1), before=[*AT_TERMINAL, *before], stdin=theirs, ready=ready) as service:
            os.close(theirs)
            yield service, lambda: os.close(ours)
    finally:
        with suppress(OSError):
            os.close(ours)
