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

from tests.e2e.instance import HOST, running
from tests.faults.hostile.conftest import OFF, unharmed
from tests.faults.hostile.nearly_right import answered, requests

if TYPE_CHECKING:
    from tests.e2e.instance import Instance

TOKEN: Final = "fuzz-operator"
SETTINGS: Final = {**dict.fromkeys((*OFF, "CODE_LIMITS"), "off"), "RESEND_COOLDOWN_SECONDS": "0", "OPS_TOKEN": TOKEN}
SCHEMATHESIS: Final = str(Path(sys.executable).with_name("schemathesis"))
CONFIG: Final = str(Path(__file__).with_name("schemathesis.toml"))
SECONDS: Final = "45"


def test_no_bytes_make_a_500(service: Instance) -> None:
    """Nearly right requests get answers below 500, leave no traceback, and harm no worker."""
    statuses: Counter[int] = Counter()

    @settings(suppress_health_check=list(HealthCheck))
    @given(requests())
    def send(request: bytes) -> None:
        statuses.update(answered(service.port, request)[:1] or [0])

    send()
    assert {status for status in statuses if status >= 500} <= {503}
    assert statuses[0] < statuses.total() // 4


@pytest.mark.slow
@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_the_service_does_what_its_description_says(tmp_path: Path, loop: str) -> None:
    """All checks of Schemathesis pass over /openapi.json, and no worker is harmed."""
    options = ["--checks", "all", "--seed", "1", "--max-time", SECONDS, "--generation-database", "none"]
    variables = os.environ | {"FUZZ_TOKEN": TOKEN}
    with running(tmp_path, loop, SETTINGS) as instance, unharmed(instance):
        url = f"http://{HOST}:{instance.port}/openapi.json"
        command = [SCHEMATHESIS, "--config-file", CONFIG, "run", url, *options]
        done = subprocess.run(command, check=False, cwd=tmp_path, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
