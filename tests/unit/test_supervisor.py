"""The supervisor: crashes become new actors, too many of them the end, and a drain leaves nobody waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.kit.supervisor import RESTART_BUDGET, RESTART_SECONDS, Supervisor, TooManyCrashes
from tests.fakes.actors import Do, Stage

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.fixture
def stage() -> Stage:
    """Return an empty stage."""
    return Stage()


async def test_a_crash_is_reported_and_a_new_actor_takes_the_same_mailbox(stage: Stage) -> None:
    """The asker of the crash hears AnswerLost, and the next message finds a new actor."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    async with supervisor.running():
        with pytest.raises(AnswerLost):
            await address.ask(Do("crash"))
        assert await address.ask(Do()) == "work by 2"
    assert stage.crashes == ["a: Broken"]
    (service,) = supervisor.services()
    assert (service.name, service.restarts) == ("a", 1)


async def test_what_waits_behind_a_crash_is_handled_by_the_next_actor(stage: Stage) -> None:
    """The mailbox outlives the actor."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    answers: list[str] = []

    async def ask(what: str) -> None:
        answers.append(await address.ask(Do(what)))

    async def crash() -> None:
        with pytest.raises(AnswerLost):
            await address.ask(Do("wait and crash"))

    async with supervisor.running(), trio.open_nursery() as nursery:
        nursery.start_soon(crash)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "work")
        await trio.testing.wait_all_tasks_blocked()
        stage.gate.set()
    assert answers == ["work by 2"]


async def test_one_crash_more_than_the_budget_ends_everything(stage: Stage) -> None:
    """A crash loop is the process' end; the asker of the last crash and all who wait hear of it."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    other = supervisor.start(stage.actor("b"))
    heard: list[type] = []

    async def wait(what: str) -> None:
        try:
            await other.ask(Do(what))
        except (AnswerLost, NotAccepted) as error:
            heard.append(type(error))

    async with trio.open_nursery() as outside:
        with pytest.RaisesGroup(TooManyCrashes, flatten_subgroups=True, allow_unwrapped=True) as caught:
            async with supervisor.running():
                outside.start_soon(wait, "wait")
                await trio.testing.wait_all_tasks_blocked()
                outside.start_soon(wait, "behind")
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(RESTART_BUDGET + 1):
                    with pytest.raises(AnswerLost):
                        await address.ask(Do("crash"))
                await trio.sleep_forever()
    assert sorted(heard, key=str) == sorted([AnswerLost, NotAccepted], key=str)
    assert len(stage.crashes) == RESTART_BUDGET + 1
    assert "the actor a crashed more than 5 times in 30 s" in str(caught.value.exceptions) + str(caught.value)


async def test_crashes_far_apart_never_spend_the_budget(stage: Stage, autojump_clock: MockClock) -> None:
    """The budget is for a while, not for a life."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    async with supervisor.running():
        for _ in range(3 * RESTART_BUDGET):
            with pytest.raises(AnswerLost):
                await address.ask(Do("crash"))
            await trio.sleep(RESTART_SECONDS / (RESTART_BUDGET - 1))
        assert autojump_clock.current_time() > RESTART_SECONDS
        assert await address.ask(Do()) == f"work by {3 * RESTART_BUDGET + 1}"


async def test_copies_share_the_mailbox_and_work_at_once(stage: Stage) -> None:
    """Two copies handle two messages at the same time; a third waits."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"), copies=2)
    async with supervisor.running(), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(address.ask, Do("wait"))
        await trio.testing.wait_all_tasks_blocked()
        assert len(address.mailbox) == 1
        stage.gate.set()


async def test_copies_that_crash_over_one_actor_get_one_new_actor(stage: Stage) -> None:
    """All copies go over to the same new actor, so that what it measures is whole."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"), copies=3)

    async def crash() -> None:
        with pytest.raises(AnswerLost):
            await address.ask(Do("wait and crash"))

    answers: set[str] = set()

    async def ask() -> None:
        answers.add(await address.ask(Do()))

    async with supervisor.running():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)
            nursery.start_soon(crash)
            await trio.testing.wait_all_tasks_blocked()
            stage.gate.set()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask)
        stage.closed = True
        with pytest.raises(NotAccepted) as caught:
            await address.ask(Do())
    assert answers == {"work by 2"}
    assert caught.value.retry_after == 2
    assert stage.built == 2


async def test_services_drain_in_the_reverse_order_of_their_start(stage: Stage) -> None:
    """A later actor can ask an earlier one until its own last message is settled."""
    supervisor = Supervisor(stage.report)
    store = supervisor.start(stage.actor("store"))
    flow = supervisor.start(stage.actor("flow", downstream=store))
    async with trio.open_nursery() as outside, supervisor.running():
        outside.start_soon(flow.ask, Do("wait"))
        outside.start_soon(flow.ask, Do("pass on"))
        await trio.testing.wait_all_tasks_blocked()
        stage.gate.set()
    assert [line for line in stage.log if "store" in line] == ["store work", "store stopped"]
    assert stage.log[-2:] == ["flow stopped", "store stopped"]


async def test_after_the_drain_nothing_is_accepted(stage: Stage) -> None:
    """A message that comes too late is refused as never handled."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    async with supervisor.running():
        assert await address.ask(Do()) == "work by 1"
    with pytest.raises(NotAccepted):
        await address.ask(Do())


async def test_cancelling_the_stage_leaves_no_asker_waiting(stage: Stage) -> None:
    """Whoever is handled hears AnswerLost, whoever waits hears NotAccepted."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    heard: list[type] = []

    async def ask(what: str) -> None:
        try:
            await address.ask(Do(what))
        except (AnswerLost, NotAccepted) as error:
            heard.append(type(error))

    async with trio.open_nursery() as outside:
        with trio.CancelScope() as scope:
            async with supervisor.running():
                outside.start_soon(ask, "wait")
                await trio.testing.wait_all_tasks_blocked()
                outside.start_soon(ask, "behind")
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
    assert sorted(heard, key=str) == sorted([AnswerLost, NotAccepted], key=str)


async def test_a_crash_during_the_drain_still_drains(stage: Stage) -> None:
    """A new actor finishes what the crashed one left in a closed mailbox."""
    supervisor = Supervisor(stage.report)
    address = supervisor.start(stage.actor("a"))
    answers: list[str] = []

    async def crash() -> None:
        with pytest.raises(AnswerLost):
            await address.ask(Do("wait and crash"))

    async def ask() -> None:
        answers.append(await address.ask(Do()))

    async with trio.open_nursery() as outside, supervisor.running():
        outside.start_soon(crash)
        await trio.testing.wait_all_tasks_blocked()
        outside.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        outside.start_soon(_open_when_blocked, stage)
    assert answers == ["work by 2"]


async def _open_when_blocked(stage: Stage) -> None:
    await trio.testing.wait_all_tasks_blocked()
    stage.gate.set()
