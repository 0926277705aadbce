"""Wakeups over Redis: writes what Taskiq's stream broker would write, without importing Taskiq.

The import would cost every API worker 11 MB, and `.kiq()` three times the CPU; a contract test has Taskiq itself
read what is written here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from service.adapters.redis_client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from uuid import UUID

    import redis

    from service.adapters.redis_client import Redis

STREAM = "vestibule:wakeups"
TASK = "vestibule.deliver"
STREAM_LENGTH = 10_000  # entries of 200 bytes; whoever is cut off is found by the next look into the outbox


class TaskiqWakeups:
    """Rings through the Taskiq stream; only ids of mails travel."""

    def __init__(self, redis_: Redis, stream: str = STREAM) -> None:
        self._redis = redis_
        self._stream = stream

    async def ring(self, mail_ids: Sequence[UUID]) -> None:
        """Tell the workers about owed mails, in one round trip; without Redis this does nothing, at once."""
        try:
            await self._redis.call(self._adding([wire(mail_id) for mail_id in mail_ids]))
        except RedisUnavailable:
            return  # the mail workers look into the outbox about once a second

    def _adding(self, entries: list[bytes]) -> Callable[[redis.Redis], list[Any]]:
        def add(client: redis.Redis) -> list[Any]:
            with client.pipeline(transaction=False) as pipeline:
                for entry in entries:
                    pipeline.xadd(self._stream, {b"data": entry}, maxlen=STREAM_LENGTH, approximate=True)
                return pipeline.execute()

        return add


def wire(mail_id: UUID) -> bytes:
    """Return the entry that Taskiq's default formatter and serializer make of a call of TASK with this id."""
    message: dict[str, object] = {
        "task_id": mail_id.hex,
        "task_name": TASK,
        "labels": {},
        "labels_types": None,
        "args": [str(mail_id)],
        "kwargs": {},
    }
    return json.dumps(message).encode()
