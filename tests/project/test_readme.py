"""The README's walk, as it stands there: its commands are run, not a copy of them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
READY_SECONDS = 60


@pytest.fixture
def service(tmp_path: Path) -> Iterator[str]:
    """Run `vestibule up` in an empty folder and return its address; Ctrl-C ends it, with 0."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    environment |= {"VESTIBULE_BIND": bind, "VESTIBULE_LOG_FORMAT": "text", "VESTIBULE_LOG_LEVEL": "WARNING"}
    up = subprocess.Popen(
        [BIN / "vestibule", "up"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert up.stdout is not None
    try:
        for line in up.stdout:  # its guide, once it is ready
            if "Ctrl-C" in line:
                break
        assert up.poll() is None
        yield f"http://{bind}"
    finally:
        os.killpg(up.pid, signal.SIGINT)
        up.communicate(timeout=READY_SECONDS)
    assert up.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_walk_of_the_readme_ends_at_an_active_account(service: str, tmp_path: Path) -> None:
    """Registration is answered with 201, the code stands in the caught mail, and activation is answered with 200."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## From registration to activation")[2]
    register, read_code, activate = (
        block.replace("http://127.0.0.1:8000", service) for block in BLOCK.findall(section.partition("\n## ")[0])
    )
    wait = "until ls .vestibule/mails/*.eml >/dev/null 2>&1; do :; done"
    script = f"set -eu\n{register}\n{wait}\n{read_code}\n{activate}"
    walked = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=READY_SECONDS
    )
    assert walked.returncode == 0, walked.stderr
    assert re.findall(r"^HTTP/1.1 (\d+)", walked.stdout, re.MULTILINE) == ["201", "200"]
    assert '"is_activated":true' in walked.stdout
