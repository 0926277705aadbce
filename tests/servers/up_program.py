"""Starts the embedded servers of a DATA_DIR as a program of its own: `python up_program.py DATA_DIR [stay]`.

Prints one line, the pids as JSON or what refused; with `stay` it waits to be killed.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

from service.embedded.data_dir import claim
from service.embedded.errors import BadEnvironment
from service.embedded.launcher import stop
from service.servers import announce, embedded, gather
from service.settings import Settings


def main(data_dir: Path, *, stay: bool) -> int:
    """Start everything, say how it went, and stop it again unless it is to stay."""
    settings = Settings(data_dir=data_dir)
    try:
        claim(data_dir)
        processes = embedded(settings)
        pids = [process.start() for process in processes]
        for process, pid in zip(processes, pids, strict=True):
            process.wait_ready(pid)
        announce(data_dir, gather(settings, processes))
    except BadEnvironment as refusal:
        _say(str(refusal))
        return 1
    _say(json.dumps(dict(zip((process.name for process in processes), pids, strict=True))))
    if stay:
        signal.pause()
    for process, pid in reversed(list(zip(processes, pids, strict=True))):
        stop(pid, process.stop_signal)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), stay="stay" in sys.argv[2:]))
