"""The RateLimiter's address without the actor: decides at once, over windows in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from actors.kit.mailbox import Address
from actors.ports import WindowRequest
from tests.fakes.windows import FakeWindows

if TYPE_CHECKING:
    from actors.domain.windows import Admission
    from actors.rate_limiter import Admit


class PromptLimiter(Address):
    """Answers Admit; `windows.away` is raised to the asker."""

    def __init__(self) -> None:
        self.windows = FakeWindows(anyio.current_time)
        self.asked: list[Admit] = []

    async def ask(self, message: Any) -> Any:  # noqa: ANN401 - one kind of message, and its answer
        """Decide."""
        return await self._decide(message)

    async def _decide(self, message: Admit) -> Admission:
        self.asked.append(message)
        [admission] = await self.windows.decide([WindowRequest(message.buckets, message.count, message.ticket)])
        return admission
