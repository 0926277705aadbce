from __future__ import annotations

import os
import subprocess
import sys

import pytest

from service.settings import BadSettings
from service.tracing.choice import choose
from service.tracing.otel import opening
from service.tracing.tracing import UNTRACED, untraced

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
HERE = {ENDPOINT: "http://127.0.0.1:4318"}
# All that an API worker and a mail worker import, and then a look at what came with it.
IMPORTS = """
import os, sys
from service.commands import choose, guarded

def look(_words):
    choose(os.environ)
    import service.asgi, service.http.app, service.mailer.http_api, service.mailer.smtp, service.mailer.worker
    import service.supervise, service.up, service.wiring
    found = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    print(*sorted(found & {"opentelemetry", "google", "requests"}))
    return 0

sys.exit(guarded(look, None))
"""
WITHOUT_THE_EXTRA = """
import sys
sys.modules["opentelemetry"] = None  # as if it were not installed
from service.cli import main
sys.exit(main(sys.argv[1:]))
"""


def python(program: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program with these variables and none of the machine's own about settings and traces."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("VESTIBULE_", "OTEL_"))}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=plain | variables, capture_output=True, text=True, check=False, timeout=60)


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    """Memory and start-up stay as they are: neither the SDK nor what its exporter needs is in any process."""
    done = python(IMPORTS)
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


def test_with_an_endpoint_the_sdk_is_imported_before_the_fork() -> None:
    """The same look finds it when it is wanted, so the test above can fail."""
    assert "opentelemetry" in python(IMPORTS, **HERE).stdout


@pytest.mark.parametrize("command", [("config", "check"), ("worker",), ("serve",), ("up",)])
def test_an_endpoint_without_the_packages_is_one_clear_line(command: tuple[str, ...], tmp_path: object) -> None:
    """Who asks for traces and has not installed the extra hears what to install."""
    done = python(WITHOUT_THE_EXTRA, *command, VESTIBULE_DATA_DIR=str(tmp_path), **HERE)
    assert done.returncode == 2
    assert done.stderr == f"vestibule: {ENDPOINT} needs more packages: install vestibule[otel]\n"


@pytest.mark.parametrize(
    "environment",
    [{}, {ENDPOINT: " "}, {**HERE, "OTEL_SDK_DISABLED": "TRUE"}, {**HERE, "OTEL_TRACES_EXPORTER": "none"}],
)
async def test_traces_are_off_unless_configured(environment: dict[str, str]) -> None:
    """No endpoint, or one of the variables that turn traces off: every part stays as it is."""
    opened = choose(environment)
    assert opened is untraced
    async with opened("api-1") as tracing:
        assert tracing is UNTRACED


@pytest.mark.parametrize("name", [ENDPOINT, TRACES_ENDPOINT])
def test_either_endpoint_turns_them_on(name: str) -> None:
    """The general variable and the one for traces are both OpenTelemetry's own."""
    opened = choose({name: "https://collector.example.com"})
    assert opened.__qualname__ == opening(named=False).__qualname__


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        (ENDPOINT, "127.0.0.1:4318"),
        (ENDPOINT, "grpc://127.0.0.1:4317"),
        (ENDPOINT, "http://"),
        (ENDPOINT, "http://host:port"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
        ("OTEL_TRACES_SAMPLER_ARG", "10%"),
        ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
    ],
)
def test_a_value_that_cannot_be_followed_is_refused(variable: str, value: str) -> None:
    """The SDK would warn and do something else; here it ends the start with one line that names the variable."""
    with pytest.raises(BadSettings, match=f"^{variable}: [^\n]+$"):
        choose({**HERE, variable: value})


@pytest.mark.parametrize("sampler", ["always_on", "always_off", "traceidratio", "parentbased_traceidratio"])
def test_the_samplers_of_the_specification_are_known(sampler: str) -> None:
    """They are given as they stand there."""
    assert choose({**HERE, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.25"}) is not untraced
