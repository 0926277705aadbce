from __future__ import annotations

import os
import selectors
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from service.children import READY, RETIRE, STOP, Child, Post, command, fork
from service.roster import STALL_SECONDS, START_SECONDS, Roster

if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 2**22 + 1  # no process has this pid


@pytest.mark.parametrize(
    ("ready", "patience", "heard"),
    [(True, STALL_SECONDS, 0.0), (False, START_SECONDS, 0.0), (False, START_SECONDS, 59.0)],
)
def test_a_child_that_is_silent_or_never_ready_is_killed(patience: float, heard: float, *, ready: bool) -> None:
    """One that was ready is given up when it is silent, one that still starts later, though it beats; not before."""
    ours, theirs = socket.socketpair()
    now = time.monotonic()
    child = Child("one", fork(command(["sleep", "1000"])), now, now + heard, ours, ready)
    roster = Roster([Post("one", 0, lambda: child, 1.0)], selectors.DefaultSelector())
    with ours, theirs:
        roster.fill(now)
        roster.kill_overdue(now + patience - 0.1)
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0)
        roster.kill_overdue(now + patience + 0.1)
        assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == -signal.SIGKILL


def test_a_child_without_a_post_leaves_as_those_who_stop_first() -> None:
    """Fewer API workers after a reload: the one too many has the time of its kind, not the few seconds of a server."""
    ours, theirs = socket.socketpair()
    stranger = Child("api-2", NOBODY, 0.0, 0.0, ours, ready=True, obeys=True)
    server = Post("postgres", 4, _never, 15.0, signal.SIGINT, child=Child("postgres", NOBODY + 1, 0.0, 0.0))
    worker = Post("api-1", 0, _never, 40.0, child=Child("api-1", NOBODY + 2, 0.0, 0.0))
    with ours, theirs:
        began = time.monotonic()
        roster = Roster([server, worker], selectors.DefaultSelector(), [stranger])
        assert theirs.recv(9) == RETIRE
        assert stranger.deadline is not None
        assert stranger.deadline - began >= 40.0
        roster.end(0)
        assert theirs.recv(9) == STOP


def test_a_server_without_a_post_stays_until_all_who_may_use_it_are_gone() -> None:
    """What a reload does without is asked to end after the last of the old workers, and last of all in a stop."""
    selector = selectors.DefaultSelector()
    ours, theirs = socket.socketpair()
    worker = Post(
        "api-1", 0, lambda: Child("api-1", NOBODY, 0.0, 0.0, ours), 40.0, child=Child("api-1", NOBODY + 1, 0.0, 0.0)
    )
    server = Child("postgres", fork(command(["sleep", "1000"])), 0.0, 0.0, ready=True)
    roster = Roster([worker], selector, [server])
    assert roster.tiers() == [0, 1]
    with ours, theirs:
        roster.fill(0.0)
        theirs.send(READY)
        for key, _ in selector.select(1.0):
            key.data()
        roster.fill(0.0)
        assert (roster.complete(), roster.alive(1), server.deadline) == (True, True, None)
        roster.end(0)
        assert server.deadline is None
        roster.end(1)
        assert os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1]) == -signal.SIGTERM


def test_a_server_without_a_post_ends_when_the_last_old_worker_has() -> None:
    """Nobody has to stop the service for it."""
    gone = Child("api-2", NOBODY, 0.0, 0.0, ready=True)
    server = Child("postgres", fork(command(["sleep", "1000"])), 0.0, 0.0, ready=True)
    worker = Post("api-1", 0, _never, 40.0, renew=False, child=Child("api-1", NOBODY + 1, 0.0, 0.0, ready=True))
    ours, theirs = socket.socketpair()
    gone.channel = ours
    with ours, theirs:
        roster = Roster([worker], selectors.DefaultSelector(), [gone, server])
        roster.fill(0.0)
        assert (server.deadline, roster.alive(1)) == (None, True)
        roster.fallen(gone.pid, 0, 0.0)
        roster.fill(0.0)
        assert os.waitstatus_to_exitcode(os.waitpid(server.pid, 0)[1]) == -signal.SIGTERM
        roster.fallen(server.pid, 0, 0.0)
        assert not roster.alive(1)


@pytest.mark.parametrize("obeys", [True, False])
def test_a_child_that_was_told_to_go_before_a_reload_has_its_whole_time_after_it(*, obeys: bool) -> None:
    """A worker that has closed its channel, or a server: neither is killed, and neither is waited with."""
    going = Child(
        "going", fork(command(["sleep", "1000"])), 0.0, 0.0, ready=True, deadline=time.monotonic(), obeys=obeys
    )
    worker = Post("api-1", 0, _never, 40.0, renew=False, child=Child("api-1", NOBODY, 0.0, time.monotonic()))
    roster = Roster([worker], selectors.DefaultSelector(), [going])
    roster.kill_overdue(time.monotonic() + 39.0)
    assert os.waitstatus_to_exitcode(os.waitpid(going.pid, 0)[1]) == -signal.SIGTERM


def _never() -> Child:
    raise AssertionError("nobody is to be started")


def test_a_post_whose_start_failed_during_a_reload_gets_one_child() -> None:
    """The second try fills the post; it is no successor and nothing is started beside it."""
    selector = selectors.DefaultSelector()
    ours, theirs = socket.socketpair()
    tries: list[float] = []

    def flaky() -> Child:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise OSError("no room")
        return Child("flaky", NOBODY, tries[-1], tries[-1])

    def steady(channel: socket.socket | None = None) -> Child:
        return Child("steady", NOBODY + 1, 0.0, 0.0, channel, obeys=True)

    posts = [
        Post("steady", 0, lambda: steady(ours), 1.0, child=steady()),
        Post("flaky", 0, flaky, 1.0),
    ]
    roster = Roster(posts, selector)
    with ours, theirs:
        roster.fill(time.monotonic())
        roster.fill(time.monotonic())
        assert len(tries) == 2
        theirs.send(READY)
        for key, _ in selector.select(1.0):
            call: Callable[[], None] = key.data
            call()
        for _ in range(3):
            roster.fill(time.monotonic())
        assert posts[0].successor is None
        assert len(tries) == 2
