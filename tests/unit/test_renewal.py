from __future__ import annotations

import subprocess
import sys

# Nothing can be written to any file, as on a full disk; a pipe takes what is printed.
FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
from service.renewal import Renewal
from service.terminal import Terminal
renewal = Renewal(["true"], "127.0.0.1:0", None, Terminal(None))
try:
    renewal.check()
except OSError:
    print("refused")
"""


def test_a_full_disk_refuses_a_reload_and_not_its_master() -> None:
    """The master of a service that runs is put together without a file; only a trial needs one."""
    ended = subprocess.run([sys.executable, "-c", FULL], capture_output=True, text=True, check=False, timeout=20)
    assert (ended.stdout, ended.returncode) == ("refused\n", 0), ended.stderr
