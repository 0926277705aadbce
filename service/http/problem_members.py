"""The members that problems have beside those of RFC 9457, each made from its error."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

from service.http.schemas import RESEND_URL

if TYPE_CHECKING:
    from actors.domain.errors import InvalidCode, WaitRefusal, WeakPassword, WrongCode
    from actors.kit.mailbox import MachineError
    from service.http.errors import InvalidFields, NotReady


def no_members(_: Exception) -> dict[str, object]:
    """Say nothing more."""
    return {}


def wait(error: WaitRefusal | MachineError) -> dict[str, object]:
    """Say when to repeat, rounded up to whole seconds and at least one: waiting that long is enough."""
    return {"retry_after": max(1, ceil(error.retry_after))}


def attempts(error: WrongCode) -> dict[str, object]:
    """Say how many attempts are left, and whether an older code was typed."""
    left: dict[str, object] = {"attempts_left": error.attempts_left}
    return left | ({"superseded": True} if error.superseded else {})


def reasons(error: WeakPassword) -> dict[str, object]:
    """Say every rule that the password breaks."""
    return {"reasons": list(error.reasons)}


def resend_url(_: Exception) -> dict[str, object]:
    """Say where to ask for a new code."""
    return {"resend_url": RESEND_URL}


def fields(error: InvalidFields) -> dict[str, object]:
    """Say what is wrong with which field."""
    return {"errors": [{"field": name, "message": message} for name, message in error.errors]}


def typed_code_field(error: InvalidCode) -> dict[str, object]:
    """Say what a code looks like."""
    return {"errors": [{"field": "activation_code", "message": f"must be {error.digits} digits"}]}


def idempotency_key(_: Exception) -> dict[str, object]:
    """Say what a key looks like."""
    message = "must be 1 to 64 visible ASCII characters, in one header"
    return {"errors": [{"field": "Idempotency-Key", "message": message}]}


def failing(error: NotReady) -> dict[str, object]:
    """Name the checks that failed."""
    return {"failing": list(error.failing)}
