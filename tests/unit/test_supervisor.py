"""The supervisor: crashes become new actors, too many of them the end, and a drain leaves nobody waiting."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from actors.kit.actor import Actor
from actors.kit.mailbox import Address, AnswerLost, Ask, Envelope, NotAccepted
from actors.kit.supervisor import RESTART_BUDGET, RESTART_SECONDS, Supervisor, TooManyCrashes
from tests.fakes.callers import callers


class Broken(Exception):
    """What makes an actor crash."""


@dataclass(frozen=True, slots=True)
class Do(Ask[str]):
    """An order."""

    what: str = "work"


class Stage:
    """What the actors of a test share: their supervisor, a log, and a gate to hold them at."""

    def __init__(self) -> None:
        self.supervisor = Supervisor(lambda name, error: self.crashes.append(f"{name}: {type(error).__name__}"))
        self.log: list[str] = []
        self.gate = trio.Event()
        self.built = 0
        self.crashes: list[str] = []
        self.closed = False

    def start(self, title: str = "a", *, copies: int = 1, downstream: Address | None = None) -> Address:
        """Start a member of this name."""

        class Titled(Member):
            name = title

        return self.supervisor.start(lambda: Titled(self, downstream), copies=copies)


class Member(Actor[Do]):
    """Does one order at a time, and answers with the order and its own number."""

    batch_limit = 1

    def __init__(self, stage: Stage, downstream: Address | None) -> None:
        stage.built += 1
        self._stage = stage
        self._number = stage.built
        self._downstream = downstream

    async def stopped(self) -> None:
        """Note the end."""
        self._stage.log.append(f"{self.name} stopped")

    def admit(self, ahead: int) -> None:
        """Refuse every order on a closed stage, naming the actor that did."""
        if self._stage.closed:
            assert ahead == 0
            raise NotAccepted(retry_after=self._number)

    async def handle(self, envelopes: Sequence[Envelope[Do]]) -> None:
        """Follow the order."""
        for envelope in envelopes:
            what = envelope.message.what
            if what.startswith("wait"):
                await self._stage.gate.wait()
            if what.endswith("crash"):
                raise Broken
            if what == "pass on" and self._downstream is not None:
                await self._downstream.ask(Do())
            self._stage.log.append(f"{self.name} {what}")
            envelope.answer(f"{what} by {self._number}")


@pytest.fixture
def stage() -> Stage:
    """Return an empty stage."""
    return Stage()


async def crash(address: Address) -> None:
    """Crash an actor; the asker gets AnswerLost."""
    with pytest.raises(AnswerLost):
        await address.ask(Do("crash"))


async def test_a_crash_is_reported_and_a_new_actor_takes_the_same_mailbox(stage: Stage) -> None:
    """The asker of the crash hears AnswerLost; what waits behind it, and what comes next, finds a new actor."""
    address = stage.start()
    async with stage.supervisor.running(), callers() as others:
        await others.call_in_turn(address.ask, Do("wait and crash"))
        await others.call_in_turn(address.ask, Do())
        stage.gate.set()
    assert others.heard == [AnswerLost, "work by 2"]
    assert stage.crashes == ["a: Broken"]
    (service,) = stage.supervisor.services()
    assert (service.name, service.restarts) == ("a", 1)


@pytest.mark.parametrize("end", ["cancelled", "crashed"])
async def test_an_end_leaves_no_asker_waiting(stage: Stage, end: str) -> None:
    """Cancelled, or with one crash more than the budget: who is handled hears AnswerLost, who waits NotAccepted."""
    address, other = stage.start(), stage.start("b")
    ends = ""
    async with callers() as others:
        with trio.CancelScope() as scope:
            try:
                async with stage.supervisor.running():
                    await others.call_in_turn(other.ask, Do("wait"))
                    await others.call_in_turn(other.ask, Do("behind"))
                    for _ in range(RESTART_BUDGET + 1 if end == "crashed" else 1):
                        await crash(address)
                    if end == "cancelled":
                        scope.cancel()
                    await trio.sleep_forever()
            except* TooManyCrashes as group:
                ends = "".join(traceback.format_exception(group))
    assert set(others.heard) == {AnswerLost, NotAccepted}
    assert ("the actor a crashed more than 5 times in 30 s" in ends) == (end == "crashed")
    assert len(stage.crashes) == (RESTART_BUDGET + 1 if end == "crashed" else 1)


async def test_crashes_far_apart_never_spend_the_budget(stage: Stage, autojump_clock: MockClock) -> None:
    """The budget is for a while, not for a life."""
    address = stage.start()
    async with stage.supervisor.running():
        for _ in range(3 * RESTART_BUDGET):
            await crash(address)
            await trio.sleep(RESTART_SECONDS / (RESTART_BUDGET - 1))
        assert autojump_clock.current_time() > RESTART_SECONDS
        assert await address.ask(Do()) == f"work by {3 * RESTART_BUDGET + 1}"
    assert stage.supervisor.services()[0].restarts == 3 * RESTART_BUDGET


async def test_copies_share_the_mailbox_and_one_new_actor(stage: Stage) -> None:
    """They work at once, and after crashes over one actor go over to the same new one: what it measures is whole."""
    address = stage.start(copies=3)
    async with stage.supervisor.running():
        async with callers() as others:
            for _ in range(4):
                await others.call_in_turn(address.ask, Do("wait and crash"))
            assert len(address.mailbox) == 1
            stage.gate.set()
        async with callers() as others:
            for _ in range(6):
                others.call(address.ask, Do())
        stage.closed = True
        with pytest.raises(NotAccepted) as caught:
            await address.ask(Do())
    assert set(others.heard) == {"work by 3"}  # the fourth crash was the second actor's
    assert caught.value.retry_after == stage.built == 3


async def test_services_drain_in_the_reverse_order_of_their_start(stage: Stage) -> None:
    """A later actor can ask an earlier one until its last message is settled, by a new actor after a crash."""
    store = stage.start("store")
    flow = stage.start("flow", downstream=store)
    async with callers() as others, stage.supervisor.running():
        for what in ("wait and crash", "wait", "pass on"):
            await others.call_in_turn(flow.ask, Do(what))
        others.call(open_when_blocked, stage)
    assert others.heard == [None, AnswerLost, "wait by 3", "pass on by 3"]
    assert stage.log == ["flow wait", "store work", "flow pass on", "flow stopped", "store stopped"]
    with pytest.raises(NotAccepted):
        await flow.ask(Do())


async def open_when_blocked(stage: Stage) -> None:
    """Open the gate when everything waits, the drain too."""
    await trio.testing.wait_all_tasks_blocked()
    stage.gate.set()
