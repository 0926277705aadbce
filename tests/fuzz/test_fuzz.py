"""Generated requests and the description's own cases against a running service; `just fuzz` gives it more of them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import HealthCheck, given, settings

from tests.e2e.instance import running
from tests.faults.hostile.conftest import OFF, unharmed
from tests.fuzz.wire import answered, requests

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.e2e.instance import Instance

TOKEN: Final = "fuzz-operator"
SETTINGS: Final = {**dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "RESEND_COOLDOWN_SECONDS": "0", "OPS_TOKEN": TOKEN}
SCHEMATHESIS: Final = str(Path(sys.executable).with_name("schemathesis"))
CONFIG: Final = str(Path(__file__).with_name("schemathesis.toml"))
SECONDS: Final = "45"


@pytest.fixture(scope="module", params=["uvloop", "trio"])
def instance(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """Run a service that limits nothing."""
    with running(tmp_path_factory.mktemp("z"), request.param, SETTINGS) as one:
        yield one


def test_no_bytes_make_a_500(instance: Instance) -> None:
    """Nearly right requests get answers below 500, leave no traceback, and harm no worker."""
    statuses: Counter[int] = Counter()

    @settings(suppress_health_check=list(HealthCheck))
    @given(requests())
    def send(request: bytes) -> None:
        statuses.update(answered(instance.port, request)[:1] or [0])

    with unharmed(instance):
        send()
    assert {status for status in statuses if status >= 500} <= {503}
    assert statuses[0] < statuses.total() // 4


@pytest.mark.slow
def test_the_service_does_what_its_description_says(instance: Instance, tmp_path: Path) -> None:
    """All checks of Schemathesis pass over /openapi.json, and no worker is harmed."""
    url = f"http://127.0.0.1:{instance.port}/openapi.json"
    options = ["--checks", "all", "--seed", "1", "--max-time", SECONDS, "--generation-database", "none"]
    command = [SCHEMATHESIS, "--config-file", CONFIG, "run", url, *options]
    with unharmed(instance):
        done = subprocess.run(
            command, check=False, cwd=tmp_path, env=os.environ | {"FUZZ_TOKEN": TOKEN}, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stdout + done.stderr
