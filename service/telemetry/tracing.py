"""Whether traces are wanted, by OpenTelemetry's own variables; without them nothing of OpenTelemetry is imported."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager, nullcontext
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

from service.settings import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractContextManager

    from actors.domain.mail import ClaimedMail
    from actors.kit.actor import Actor
    from actors.kit.mailbox import Address
    from actors.kit.supervisor import Supervisor
    from service.telemetry.spans import Spans

# The first that is set counts, as the specification of the OTLP exporter has it.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


class Untraced:
    """What wiring puts around the parts worth seeing where no traces are wanted: nothing. See Spans for the rest."""

    def application(self, application: Any, exchange: str) -> Any:  # noqa: ANN401, ARG002 - as Spans has it
        """Return the application."""
        return application

    def start(self, supervisor: Supervisor, build: Callable[[], Actor[Any]], *, copies: int = 1) -> Address:
        """Start the actor."""
        return supervisor.start(build, copies=copies)

    def mail(self, _mail: ClaimedMail) -> AbstractContextManager[object]:
        """Surround nothing."""
        return nullcontext()


@asynccontextmanager
async def tracing(process: str) -> AsyncIterator[Untraced | Spans]:
    """Give the traces of this process around the body; its last spans are exported at the end, or lost in time."""
    if not wanted(os.environ):
        yield Untraced()
        return
    from service.telemetry.spans import opened  # noqa: PLC0415 - only an operator who asks for traces pays for them

    async with opened(process) as spans:
        yield spans


def wanted(environ: Mapping[str, str]) -> bool:
    """Return whether there is a collector to send traces to, and nothing switches them off."""
    off = (
        environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    )
    return not off and any(environ.get(name, "").strip() for name in ENDPOINTS)


def check(environ: Mapping[str, str]) -> None:
    """Raise SettingsError, with one line, where the SDK would warn and go on, or could not be imported.

    Call it before the first import of a driver: redis-py imports OpenTelemetry's SDK wherever it is installed, for
    metrics that nobody asked for (0.2 s of CPU, 2.4 MB). Without traces it is kept out of the process here.
    """
    if not wanted(environ):
        sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]  # as importlib has it: not importable
        return
    endpoint = next(name for name in ENDPOINTS if environ.get(name, "").strip())
    if not environ[endpoint].strip().startswith(("http://", "https://")):
        raise SettingsError(f"{endpoint}: must be http://… or https://…")
    for name in PROTOCOLS:
        if environ.get(name, "http/protobuf") != "http/protobuf":
            raise SettingsError(f"{name}: only http/protobuf is spoken here")
    try:
        found = find_spec("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise SettingsError(f"{endpoint} needs more packages: install vestibule[otel]")
