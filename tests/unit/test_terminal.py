from __future__ import annotations

import os
import time

import pytest

from service.terminal import FRESH_SECONDS, Terminal


def test_a_terminal_is_lost_once_its_other_end_is_closed() -> None:
    """What is typed is no loss; the hang-up is, and it is told again to whoever looks again."""
    ours, theirs = os.openpty()
    terminal, now = Terminal(theirs), time.monotonic()
    os.write(ours, b"typed\n")
    assert not terminal.look(now)
    os.close(ours)
    assert terminal.look(now)
    assert terminal.look(now + FRESH_SECONDS)
    with pytest.raises(KeyboardInterrupt):
        terminal.interrupt()
    os.close(theirs)


def test_a_loss_is_soon_forgotten() -> None:
    """A job that was disowned gets no SIGHUP when its terminal closes: one that comes later asks for a reload."""
    ours, theirs = os.openpty()
    os.close(ours)
    terminal, now = Terminal(theirs), time.monotonic()
    assert terminal.look(now)
    assert not terminal.look(now + FRESH_SECONDS + 1)
    assert terminal.descriptor is None
    terminal.interrupt()


def test_where_there_is_no_terminal_none_is_lost() -> None:
    """Under a service manager SIGHUP is always a reload."""
    assert not Terminal(None).look(time.monotonic())
