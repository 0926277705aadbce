"""The README's walk, as it stands there: its commands are run, not a copy of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.instance import HOST, running

README = Path(__file__).parents[2] / "README.md"
BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_walk_of_the_readme_ends_at_an_active_account(tmp_path: Path) -> None:
    """Registration is answered with 201, the code stands in the caught mail, and activation is answered with 200."""
    section = README.read_text(encoding="utf-8").partition("## From registration to activation")[2]
    register, read_code, activate = BLOCK.findall(section.partition("\n## ")[0])
    wait = "until ls .vestibule/mails/*.eml >/dev/null 2>&1; do :; done"
    script = f"set -eu\n{register}\n{wait}\n{read_code}\n{activate}"
    with running(tmp_path, "uvloop", {"DATA_DIR": str(tmp_path / ".vestibule")}) as up:
        own = script.replace("http://127.0.0.1:8000", f"http://{HOST}:{up.port}")
        walked = subprocess.run(
            ["sh", "-c", own], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
    assert walked.returncode == 0, walked.stderr
    assert re.findall(r"^HTTP/1.1 (\d+)", walked.stdout, re.MULTILINE) == ["201", "200"]
    assert '"is_activated":true' in walked.stdout
