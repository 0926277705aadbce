from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from service.hypercorn_worker import Guard, WorkerConfig

if TYPE_CHECKING:
    from trio.testing import MockClock


class Connection:
    """A connection of a server library that ends as it is told."""

    def __init__(self, config: WorkerConfig, ending: BaseException | None) -> None:
        self.config = config
        self.ending = ending

    async def run(self) -> None:
        """Last for a second."""
        await trio.sleep(1)
        if self.ending is not None:
            raise self.ending


class Guarded(Guard, Connection):
    """The same, guarded."""


@pytest.mark.parametrize("ending", [None, ValueError(), ExceptionGroup("", [RuntimeError()])])
async def test_a_connection_that_fails_reaches_nobody_else(
    ending: Exception | None,
    autojump_clock: MockClock,
) -> None:
    """Its failure is logged, the nursery of all connections lives, and the connection is counted out."""
    config = WorkerConfig(0, 1.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Guarded(config, ending).run)
        nursery.start_soon(Guarded(config, None).run)
        await trio.sleep(0.5)
        began = trio.current_time()
        await config.until_empty()
        assert trio.current_time() - began == pytest.approx(0.5)


async def test_an_interrupt_is_not_guarded_against() -> None:
    """What is no Exception goes on its way."""
    with pytest.raises(KeyboardInterrupt):
        await Guarded(WorkerConfig(0, 1.0), KeyboardInterrupt()).run()


async def test_no_connection_needs_no_wait(autojump_clock: MockClock) -> None:
    """A worker without connections leaves at once."""
    await WorkerConfig(0, 1.0).until_empty()
    assert trio.current_time() == 0


def test_a_closing_worker_sends_clients_elsewhere() -> None:
    """Every answer says so from then on, and none before."""
    config = WorkerConfig(0, 1.0)
    assert (b"connection", b"close") not in config.response_headers("h11")
    config.closing = True
    assert (b"connection", b"close") in config.response_headers("h11")
