"""Does things at once, from threads that start together."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ResultT = TypeVar("ResultT")
START_SECONDS = 10.0


def at_once(calls: Sequence[Callable[[], ResultT]]) -> list[ResultT]:
    """Run every call in a thread of its own, none before all are ready; return their results in order."""
    barrier = threading.Barrier(len(calls), timeout=START_SECONDS)

    def run(call: Callable[[], ResultT]) -> ResultT:
        barrier.wait()
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(run, calls))
