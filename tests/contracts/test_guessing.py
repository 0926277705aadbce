from __future__ import annotations

import os
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import hypothesis.strategies as st
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.contracts.desks import MemoryDesk, PostgresDesk
from tests.contracts.guessing import CODES_A_DAY, CODES_AN_HOUR, DAY, Siege
from tests.fakes.accounts import DEFAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from tests.contracts.desks import Desk

ROUNDS = int(os.environ.get("GUESSING_ROUNDS", "100"))
AT_ONCE = 2  # codes that may be alive when a day begins: the newest one and the one before
WAITS = st.sampled_from([1.0, 31.0, 61.0, 600.0, 850.0, 901.0, 3601.0, 20_000.0, 86_401.0])
NOISE = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]


class Guessing(RuleBasedStateMachine):
    """Owner, strangers, mail server and time in any order, on one address, over the store in memory."""

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._portal = self._stack.enter_context(start_blocking_portal("trio"))
        self.siege: Siege = self._stack.enter_context(self._portal.wrap_async_context_manager(self._laid()))

    @asynccontextmanager
    async def _laid(self) -> AsyncIterator[Siege]:
        async with self.desk() as desk, Siege.laid(desk) as siege:
            yield siege

    def desk(self) -> AbstractAsyncContextManager[Desk]:
        """Return the store to play on."""
        return MemoryDesk.open()

    def teardown(self) -> None:
        """End the actors."""
        self._stack.close()

    @rule()
    def register(self) -> None:
        """Somebody registers the address."""
        self._portal.call(self.siege.register)

    @rule(pause=st.sampled_from([0.0, 31.0]))
    def resend(self, pause: float) -> None:
        """Somebody asks for another code."""
        self._portal.call(self.siege.wait, pause)
        self._portal.call(self.siege.resend)

    @rule(times=st.sampled_from([1, 2, 4, 7]))
    def guess(self, times: int) -> None:
        """Somebody types wrong codes at once."""
        self._portal.call(self.siege.guess, times)

    @rule(seconds=WAITS)
    def wait(self, seconds: float) -> None:
        """Time passes."""
        self._portal.call(self.siege.wait, seconds)

    @precondition(lambda self: self.siege.counts.mails)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        """Let the mail server take one of the mails."""
        self._portal.call(self.siege.accept, data.draw(st.sampled_from(list(self.siege.counts.mails)[-3:])))

    @precondition(lambda self: self.siege.counts.mails)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        """Let the mail server refuse one of the mails for good."""
        self._portal.call(self.siege.bury, data.draw(st.sampled_from(list(self.siege.counts.mails)[-3:])))

    @precondition(lambda self: self.siege.counts.mails)
    @rule(data=st.data())
    def freshen(self, data: st.DataObject) -> None:
        """Let a mail be owed for so long that it gets a fresh code."""
        self._portal.call(self.siege.freshen, data.draw(st.sampled_from(list(self.siege.counts.mails)[-3:])))

    @precondition(lambda self: self.siege.counts.dead())
    @rule(data=st.data())
    def type_dead(self, data: st.DataObject) -> None:
        """Somebody types a code that was valid once."""
        self._portal.call(self.siege.type_dead, data.draw(st.sampled_from(self.siege.counts.dead()[-5:])))

    @invariant()
    def the_bounds_hold(self) -> None:
        """Hold codes to their budget, tries to the codes that bear them, and the account to whoever has the code."""
        counts = self.siege.counts
        issued = [code.at for code in counts.issued.values()]
        assert counts.most_within(DAY, issued) <= CODES_A_DAY
        assert counts.most_within(3600.0, issued) <= CODES_AN_HOUR
        assert counts.most_within(DAY, counts.tries) <= DEFAULTS.attempts * (CODES_A_DAY + AT_ONCE)
        assert len(counts.tries) <= DEFAULTS.attempts * len(issued)
        assert not counts.activated


def test_nobody_has_more_guesses_than_the_codes_bear() -> None:
    """Whatever happens in whichever order: five tries a code, ten codes a day, and no dead code activates."""
    run_state_machine_as_test(
        Guessing,
        settings=settings(max_examples=ROUNDS, stateful_step_count=60, deadline=None, suppress_health_check=NOISE),
    )


def test_nobody_has_more_guesses_in_postgres_either(database_url: str) -> None:
    """The same, shorter, over the statements that decide it in production."""

    class OnPostgres(Guessing):
        def desk(self) -> AbstractAsyncContextManager[Desk]:
            return PostgresDesk.open(database_url)

    run_state_machine_as_test(
        OnPostgres,
        settings=settings(
            max_examples=max(4, ROUNDS // 12), stateful_step_count=40, deadline=None, suppress_health_check=NOISE
        ),
    )
