"""Two counters for passwords: who checks one never queues behind those who want a new hash."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from actors.password_hasher import PasswordHasher

if TYPE_CHECKING:
    from actors.kit.mailbox import Address, Ask

AnswerT = TypeVar("AnswerT")


class PasswordChecker(PasswordHasher):
    """The same work over threads of its own, which a flood of registrations cannot occupy."""

    name = "PasswordChecker"


class Passwords(Protocol):
    """Where passwords are hashed and checked; the address of one actor is one too."""

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Return the answer; raises as Address.ask."""
        ...

    def expect_room(self, message: Ask[Any], coming: int = 0) -> None:
        """Raise NotAccepted when the message would be turned away now; `coming` have been let in and not asked yet."""
        ...


class PasswordCounters:
    """Both: messages of lane 0 go to the checker, the others to the hasher."""

    def __init__(self, checker: Address, hasher: Address) -> None:
        self._counters = (checker, hasher)

    async def ask(self, message: Ask[AnswerT]) -> AnswerT:
        """Ask at the message's counter."""
        return await self._counters[message.lane].ask(message)

    def expect_room(self, message: Ask[Any], coming: int = 0) -> None:
        """Raise NotAccepted when the message would be turned away now."""
        self._counters[message.lane].expect_room(message, coming)
