"""A fresh clone: the bootstrap brings everything by itself, once, however many start at the same time."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers.ports import free_ports

ROOT = Path(__file__).parents[2]
KEPT = re.compile(r"HOME|LANG|SSL_CERT_FILE|PIP_\w+|(https?|no)_proxy", re.IGNORECASE)


@pytest.mark.slow
def test_a_fresh_clone_needs_python_and_pip_only(tmp_path: Path) -> None:
    """Four at once in an empty clone, where pip is told to refuse: all list the recipes and all find one .venv."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    python = getattr(sys, "_base_executable", sys.executable)
    environment = {name: value for name, value in os.environ.items() if KEPT.fullmatch(name)}
    environment |= {"PATH": f"{Path(python).parent}:{os.defpath}", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_USER": "1"}
    command = [python, clone / "dev", "_venv"]
    started = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    said = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    assert sum("fetching" in text for text in said) == 1
    assert sum("installing" in text for text in said) == 1
    help_text = subprocess.run(
        [clone / ".venv" / "bin" / "vestibule", "--help"], capture_output=True, text=True, check=True
    )
    assert "migrate" in help_text.stdout
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert again.stderr == ""
    assert_up_ends_with_ctrl_c([python, clone / "dev", "up"], environment, tmp_path)


def assert_up_ends_with_ctrl_c(command: list[str | Path], variables: dict[str, str], elsewhere: Path) -> None:
    """Start it from another folder; Ctrl-C ends it with 0, and its own last line is the last one."""
    settings = {"BIND": f"127.0.0.1:{free_ports()}", "LOG_FORMAT": "text", "LOG_LEVEL": "WARNING"}
    own = variables | {f"VESTIBULE_{name}": value for name, value in settings.items()}
    with subprocess.Popen(
        command, env=own, cwd=elsewhere, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as up:
        assert up.stdout is not None
        said = next((line for line in up.stdout if "Ctrl-C" in line), None)
        os.killpg(up.pid, signal.SIGINT)
        assert (said, up.stdout.read()) == ("Stop it with Ctrl-C.\n", "")
    assert up.returncode == 0
    assert not (elsewhere / ".vestibule").exists()
