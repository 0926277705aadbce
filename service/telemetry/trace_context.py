"""The W3C trace context of a request, which mails and log lines carry whether traces are made or not."""

from __future__ import annotations

import re
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from actors.domain.mail import ClaimedMail
    from actors.kit.actor import Actor
    from actors.kit.mailbox import Address
    from actors.kit.supervisor import Supervisor

HEADER = b"traceparent"
# Trace Context, 3.2: version 00, and neither id all zeros.
TRACEPARENT = re.compile(r"00-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def trace_id(text: str | None) -> str | None:
    """Return the 32 digits that name the trace, None without one."""
    found = TRACEPARENT.fullmatch(text or "")
    return found[1] if found else None


def of_headers(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the trace context of a request; two of them are none (Trace Context, 4.3)."""
    given = [value.decode("latin-1") for name, value in headers if name.lower() == HEADER]
    return given[0] if len(given) == 1 and TRACEPARENT.fullmatch(given[0]) else None


class Traces:
    """What wiring puts around the parts worth seeing: nothing, where no traces are wanted. See Spans for the rest."""

    def application(self, application: Any, exchange: str) -> Any:  # noqa: ANN401, ARG002 - as Spans has it
        """Return the application, which leaves in its scope, under the name `exchange`, what became of a request."""
        return application

    def start(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Start the actor."""
        return supervisor.start(build, copies=copies)

    def mail(self, _mail: ClaimedMail) -> AbstractContextManager[object]:
        """Surround the sending of one mail."""
        return nullcontext()
