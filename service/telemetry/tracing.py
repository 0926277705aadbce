"""Whether traces are wanted, by OpenTelemetry's own variables; without them nothing of OpenTelemetry is imported."""

from __future__ import annotations

import os
import sys
from contextlib import asynccontextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from service.settings import SettingsError
from service.telemetry.trace_context import Traces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

# The first that is set counts, as the specification of the OTLP exporter has it.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


@asynccontextmanager
async def tracing(process: str) -> AsyncIterator[Traces]:
    """Give the traces of this process around the body; its last spans are exported at the end, or lost in time."""
    if endpoint(os.environ) is None:
        yield Traces()
        return
    from service.telemetry.spans import opened  # noqa: PLC0415 - only an operator who asks for traces pays for them

    async with opened(process) as spans:
        yield spans


def endpoint(environ: Mapping[str, str]) -> str | None:
    """Return the name of the variable that says where the collector is; None where no traces are wanted."""
    off = environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or environ.get("OTEL_TRACES_EXPORTER") == "none"
    return None if off else next((name for name in ENDPOINTS if environ.get(name, "").strip()), None)


def check(environ: Mapping[str, str]) -> None:
    """Raise SettingsError, with one line, where the SDK could not be imported or would warn and go on.

    Call it before the first import of a driver: redis-py imports OpenTelemetry's SDK wherever it is installed, for
    metrics that nobody asked for (0.2 s of CPU, 2.4 MB). Without traces it is kept out of the process here.
    """
    name = endpoint(environ)
    if name is None:
        sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]  # as importlib has it: not importable
    elif not environ[name].strip().startswith(("http://", "https://")):
        raise SettingsError(f"{name}: must be http://… or https://…, to which OTLP goes in protobuf")
    elif find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise SettingsError(f"{name} needs more packages: install vestibule[otel]")
