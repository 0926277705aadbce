"""Wakes the mail workers: writes to Redis what Taskiq's stream broker would write, without importing Taskiq.

The import would cost every API worker 11 MB, and `.kiq()` three times the CPU. A test lets Taskiq itself read what is
written here.
"""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from service.redis.client import RedisUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    import redis

    from service.redis.client import Redis

STREAM = "vestibule:wakeups"
TASK = "vestibule.deliver"
STREAM_LENGTH = 10_000  # entries of 200 bytes; the next sweep finds the mails of those that are cut off


class TaskiqWakeups:
    """Writes to the Taskiq stream; only ids of mails travel."""

    def __init__(self, redis_: Redis, stream: str = STREAM) -> None:
        self._redis = redis_
        self._stream = stream

    async def wake(self, mails: Sequence[UUID]) -> None:
        """Tell the workers about owed mails, in one round trip; without Redis this does nothing, at once."""
        with suppress(RedisUnavailable):  # the mail workers sweep about once a second
            await self._redis.call(partial(_add, stream=self._stream, entries=[task_entry(mail) for mail in mails]))


def _add(client: redis.Redis, stream: str, entries: Sequence[bytes]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for entry in entries:
            pipeline.xadd(stream, {b"data": entry}, maxlen=STREAM_LENGTH, approximate=True)
        pipeline.execute()


def task_entry(mail: UUID) -> bytes:
    """Return what Taskiq's default formatter and serializer make of a call of TASK with this id."""
    call: dict[str, object] = {
        "task_id": mail.hex,
        "task_name": TASK,
        "labels": {},
        "labels_types": None,
        "args": [str(mail)],
        "kwargs": {},
    }
    return json.dumps(call).encode()
