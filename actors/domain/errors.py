"""Everything the domain can refuse.

::

    Refusal
    ├── InvalidEmail            the text is no address we can mail to
    ├── WeakPassword            reasons: too_short too_long common contains_address
    ├── InvalidCode             not the digits of a code; costs nothing
    ├── EmailTaken              the address is active, or pending under a live code or an owed mail
    ├── InvalidCredentials      unknown address or wrong password, never told apart
    ├── AlreadyActivated        nothing left to do
    ├── WrongCode               attempts_left, superseded
    ├── CodeExpired             ask for a new one
    ├── CodeAttemptsExhausted   the code is dead; retry_after: until a resend can be had
    ├── ActivationFailed        strict mode: anything but a success
    ├── ResendTooSoon           retry_after
    ├── CodesExhausted          the address' codes of the hour or day are used up; retry_after
    ├── RateLimited             a window is full; retry_after
    ├── UnknownStatus           no such registration, or too old
    ├── IdempotencyKeyInvalid   not 1 to 64 visible ASCII characters
    └── IdempotencyKeyReused    the key came with another body

Durations are in seconds. No refusal carries an address, a password or a code, in its arguments or its text.
"""

from __future__ import annotations


class Refusal(Exception):
    """The request was understood and is refused; `retry_after` says when a repeat makes sense, if ever."""

    retry_after: float | None = None


class WaitRefusal(Refusal):
    """A refusal that time heals: waiting `retry_after` seconds is enough."""

    def __init__(self, retry_after: float) -> None:
        super().__init__()
        self.retry_after: float = retry_after


class InvalidEmail(Refusal):
    """The text is no address we can mail to; `message` says why, without repeating it."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message = message


class WeakPassword(Refusal):
    """The password breaks a rule; `reasons` are stable words."""

    def __init__(self, reasons: tuple[str, ...]) -> None:
        super().__init__()
        self.reasons = reasons


class InvalidCode(Refusal):
    """The text cannot be a code of this service, which has `digits` decimal digits."""

    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits


class EmailTaken(Refusal):
    """The address belongs to an account that is active or still waits under a live code or an owed mail."""


class InvalidCredentials(Refusal):
    """Unknown address or wrong password; the caller cannot tell which."""


class AlreadyActivated(Refusal):
    """The account is active already."""


class WrongCode(Refusal):
    """Not the code; `attempts_left` of it remain, and a `superseded` one cost none."""

    def __init__(self, attempts_left: int, *, superseded: bool = False) -> None:
        super().__init__()
        self.attempts_left = attempts_left
        self.superseded = superseded


class CodeExpired(Refusal):
    """The code's time is over."""


class CodeAttemptsExhausted(WaitRefusal):
    """Too many wrong attempts killed the code."""


class ActivationFailed(Refusal):
    """The activation did not succeed; strict mode gives no reason."""


class ResendTooSoon(WaitRefusal):
    """The last code is too young for another."""


class CodesExhausted(WaitRefusal):
    """The address has had all the codes that an hour or a day allows."""


class RateLimited(WaitRefusal):
    """A window is full."""


class UnknownStatus(Refusal):
    """No registration has this status address, or it is a day old."""


class IdempotencyKeyInvalid(Refusal):
    """The key is not 1 to 64 visible ASCII characters."""


class IdempotencyKeyReused(Refusal):
    """The key is bound to another body."""
