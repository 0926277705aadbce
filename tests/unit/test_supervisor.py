"""The supervisor: crashes become new actors, too many of them the end, and a drain leaves nobody waiting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from actors.kit.mailbox import AnswerLost, NotAccepted
from actors.kit.supervisor import RESTART_BUDGET, RESTART_SECONDS, Supervisor, TooManyCrashes
from tests.fakes.house import Do, House

if TYPE_CHECKING:
    from trio.testing import MockClock


@pytest.fixture
def house() -> House:
    """Return an empty house."""
    return House()


async def test_a_crash_is_reported_and_a_new_actor_takes_the_same_mailbox(house: House) -> None:
    """The asker of the crash hears AnswerLost, and the next message finds a new actor."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    async with supervisor.running():
        with pytest.raises(AnswerLost):
            await address.ask(Do("crash"))
        assert await address.ask(Do()) == "work by 2"
    assert house.crashes == ["a: Broken"]
    (post,) = supervisor.posts()
    assert (post.name, post.restarts) == ("a", 1)


async def test_what_waits_behind_a_crash_is_handled_by_the_next_actor(house: House) -> None:
    """The mailbox outlives the actor."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
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
        house.gate.set()
    assert answers == ["work by 2"]


async def test_one_crash_more_than_the_budget_ends_everything(house: House) -> None:
    """A crash loop is the process' end; the asker of the last crash and all who wait hear of it."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    other = supervisor.employ(house.actor("b"))
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
    assert len(house.crashes) == RESTART_BUDGET + 1
    assert "the actor a crashed more than 5 times in 30 s" in str(caught.value.exceptions) + str(caught.value)


async def test_crashes_far_apart_never_spend_the_budget(house: House, autojump_clock: MockClock) -> None:
    """The budget is for a while, not for a life."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    async with supervisor.running():
        for _ in range(3 * RESTART_BUDGET):
            with pytest.raises(AnswerLost):
                await address.ask(Do("crash"))
            await trio.sleep(RESTART_SECONDS / (RESTART_BUDGET - 1))
        assert autojump_clock.current_time() > RESTART_SECONDS
        assert await address.ask(Do()) == f"work by {3 * RESTART_BUDGET + 1}"


async def test_a_start_that_fails_is_charged_and_tried_again(house: House) -> None:
    """A new actor that cannot start is one more crash, not the end of the house."""
    house.failing_starts = 2
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    async with supervisor.running():
        with pytest.raises(AnswerLost):
            await address.ask(Do("crash"))
        assert await address.ask(Do()) == "work by 4"
    assert len(house.crashes) == 3


async def test_a_start_that_always_fails_spends_the_budget(house: House) -> None:
    """Trying again has an end."""
    house.failing_starts = 1000
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    with pytest.RaisesGroup(TooManyCrashes, flatten_subgroups=True):
        async with supervisor.running():
            with pytest.raises(AnswerLost):
                await address.ask(Do("crash"))
            await trio.sleep_forever()
    assert len(house.crashes) == RESTART_BUDGET + 1


async def test_copies_share_the_mailbox_and_work_at_once(house: House) -> None:
    """Two copies handle two messages at the same time; a third waits."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"), copies=2)
    async with supervisor.running(), trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(address.ask, Do("wait"))
        await trio.testing.wait_all_tasks_blocked()
        assert address.statistics().waiting == 1
        house.gate.set()


async def test_copies_that_crash_over_one_actor_get_one_new_actor(house: House) -> None:
    """All copies go over to the same new actor, so that what it measures is whole."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"), copies=3)

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
            house.gate.set()
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(ask)
        with pytest.raises(NotAccepted) as caught:
            await address.ask(Do("nobody wants"))
    assert answers == {"work by 2"}
    assert caught.value.retry_after == 2
    assert house.built == 2


async def test_posts_drain_in_the_reverse_order_of_their_employment(house: House) -> None:
    """A later actor can ask an earlier one until its own last message is settled."""
    supervisor = Supervisor(house.report)
    store = supervisor.employ(house.actor("store"))
    flow = supervisor.employ(house.actor("flow", downstream=store))
    async with trio.open_nursery() as outside, supervisor.running():
        outside.start_soon(flow.ask, Do("wait"))
        outside.start_soon(flow.ask, Do("pass on"))
        await trio.testing.wait_all_tasks_blocked()
        house.gate.set()
    assert [line for line in house.diary if "store" in line] == ["store started", "store work", "store stopped"]
    assert house.diary[-2:] == ["flow stopped", "store stopped"]


async def test_after_the_drain_nothing_is_accepted(house: House) -> None:
    """A message that comes too late is refused as never handled."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
    async with supervisor.running():
        assert await address.ask(Do()) == "work by 1"
    with pytest.raises(NotAccepted):
        await address.ask(Do())


async def test_cancelling_the_house_leaves_no_asker_waiting(house: House) -> None:
    """Whoever is handled hears AnswerLost, whoever waits hears NotAccepted."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
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


async def test_a_crash_during_the_drain_still_drains(house: House) -> None:
    """A new actor finishes what the crashed one left in a closed mailbox."""
    supervisor = Supervisor(house.report)
    address = supervisor.employ(house.actor("a"))
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
        outside.start_soon(_open_when_blocked, house)
    assert answers == ["work by 2"]


async def _open_when_blocked(house: House) -> None:
    await trio.testing.wait_all_tasks_blocked()
    house.gate.set()
