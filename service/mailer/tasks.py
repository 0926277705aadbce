"""The one task of the mail worker: a wake-up rings in the mail room."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

from service.adapters.taskiq_wakeups import TASK

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskiq import AsyncBroker


def register(broker: AsyncBroker, ring: Callable[[UUID], None]) -> None:
    """Have `ring` called with the id of every wake-up that the broker receives."""

    async def deliver(mail_id: str) -> None:
        """Ring at once and return: the mail room owns the delivery, its lease and its retries."""
        ring(UUID(mail_id))

    broker.register_task(deliver, task_name=TASK)
