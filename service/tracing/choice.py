"""Whether traces are wanted, by OpenTelemetry's own variables, and whether they can be had."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from service.settings import BadSettings
from service.tracing.tracing import untraced

if TYPE_CHECKING:
    from collections.abc import Mapping

    from service.tracing.tracing import Opening

# The first that is set counts, as the specification of the OTLP exporter has it.
ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS: Final = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER, SAMPLER, SHARE = "OTEL_TRACES_EXPORTER", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"
SAMPLERS = {prefix + name for prefix in ("", "parentbased_") for name in ("always_on", "always_off", "traceidratio")}
PACKAGES: Final = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def choose(environment: Mapping[str, str]) -> Opening:
    """Return what opens the traces of a process: none without an endpoint, and then nothing is imported.

    Raises BadSettings, with one line, where the SDK would warn and go on otherwise, and when the packages are missing.
    """
    given = _given(environment)
    if not _wanted(given):
        return untraced
    _check(given)
    if not all(map(_installed, PACKAGES)):
        raise BadSettings(f"{_first(given, ENDPOINTS)[0]} needs more packages: install vestibule[otel]")
    from service.tracing.otel import opening  # noqa: PLC0415 - only who asked for it pays for it

    return opening(named=_named(given))


def keep_out(environment: Mapping[str, str]) -> None:
    """Let nothing of OpenTelemetry into a process without traces; call it before the first import of a driver.

    redis-py imports the SDK wherever it is installed, for metrics that nobody has asked for: 0.2 s of CPU, 2.4 MB.
    """
    if not _wanted(_given(environment)):
        sys.modules.setdefault("opentelemetry", None)  # type: ignore[arg-type]  # as importlib has it: not importable


def _given(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: text.strip() for name, text in environment.items() if name.startswith("OTEL_") and text.strip()}


def _wanted(given: Mapping[str, str]) -> bool:
    off = given.get("OTEL_SDK_DISABLED", "").lower() == "true" or given.get(EXPORTER) == "none"
    return not off and bool(_first(given, ENDPOINTS)[1])


def _check(given: Mapping[str, str]) -> None:
    name, endpoint = _first(given, ENDPOINTS)
    if not _is_url(endpoint):
        raise BadSettings(f"{name}: must be http://… or https://…")
    name, protocol = _first(given, PROTOCOLS)
    if protocol not in {"", "http/protobuf"}:
        raise BadSettings(f"{name}: only http/protobuf is spoken here")
    if given.get(EXPORTER, "otlp") != "otlp":
        raise BadSettings(f"{EXPORTER}: must be otlp or none")
    if given.get(SAMPLER, "always_on").lower() not in SAMPLERS:
        raise BadSettings(f"{SAMPLER}: must be one of {', '.join(sorted(SAMPLERS))}")
    if not _is_share(given.get(SHARE, "1")):
        raise BadSettings(f"{SHARE}: must be a number from 0 to 1")


def _first(given: Mapping[str, str], names: tuple[str, ...]) -> tuple[str, str]:
    return next(((name, given[name]) for name in names if name in given), (names[0], ""))


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _is_share(text: str) -> bool:
    try:
        return 0 <= float(text) <= 1
    except ValueError:
        return False


def _named(given: Mapping[str, str]) -> bool:
    """Whether the operator has named the service."""
    return "OTEL_SERVICE_NAME" in given or "service.name=" in given.get("OTEL_RESOURCE_ATTRIBUTES", "")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
