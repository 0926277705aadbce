"""A real Postfix as the relay: a configuration and a queue of its own, at a high port, until its context ends."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from tests.servers.ports import free_ports
from tests.servers.processes import Server

if TYPE_CHECKING:
    from collections.abc import Mapping

MASTER = Path("/usr/lib/postfix/sbin/master")
NEEDS = f"needs {MASTER} (Debian's package postfix), and root to start it"
SETTINGS = {
    "compatibility_level": "3.6",
    "mail_owner": "postfix",
    "myhostname": "relay.example.net",
    "mydestination": "",
    "mynetworks": "127.0.0.0/8",
    "inet_interfaces": "127.0.0.1",
    "inet_protocols": "ipv4",
    "alias_maps": "",
    "alias_database": "",
    "maillog_file_prefixes": "/",
    "smtp_tls_security_level": "none",
    "minimal_backoff_time": "2s",
    "queue_run_delay": "2s",
}
SERVICES = """
{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""
QUEUES = ("incoming", "active", "deferred", "defer", "bounce", "corrupt", "hold", "trace", "private", "public")


def can_run() -> bool:
    """Return whether Postfix is installed and may be started."""
    return MASTER.exists() and os.geteuid() == 0


class Postfix(Server):
    """A plain relay that passes mail on to the server at `next_port`."""

    def __init__(self, folder: Path, next_port: int) -> None:
        super().__init__(folder)
        self.port = free_ports()
        self._settings = SETTINGS | {
            "relayhost": f"[127.0.0.1]:{next_port}",
            "queue_directory": str(folder / "queue"),
            "data_directory": str(folder / "data"),
            "maillog_file": str(folder / "maillog"),
        }

    def start(self) -> None:
        """Start it with a queue that is empty, in a folder that its own user may enter."""
        self._folder.chmod(0o755)
        queues = ["data", *(f"queue/{name}" for name in QUEUES)]
        for name in ("conf", "queue/pid", *queues):
            (self._folder / name).mkdir(parents=True)
        for name in queues:
            shutil.chown(self._folder / name, "postfix")
            (self._folder / name).chmod(0o700)
        (self._folder / "conf" / "master.cf").write_text(SERVICES.format(port=self.port), encoding="utf-8")
        self.restart({})

    def ready(self) -> bool:
        """Return whether it has begun."""
        path = self._folder / "maillog"
        return path.exists() and "daemon started" in path.read_text(encoding="utf-8")

    def restart(self, settings: Mapping[str, str]) -> None:
        """Start it anew with these settings beside the plain ones; every connection ends."""
        self.kill()
        self._configure(settings)
        (self._folder / "maillog").unlink(missing_ok=True)
        self.run([str(MASTER), "-c", str(self._folder / "conf"), "-d"], death="TERM")

    def reload(self, settings: Mapping[str, str]) -> None:
        """Change main.cf as an operator does: these settings beside the plain ones, then `postfix reload`."""
        self._configure(settings)
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def _configure(self, settings: Mapping[str, str]) -> None:
        lines = [f"{name} = {value}\n" for name, value in (self._settings | dict(settings)).items()]
        (self._folder / "conf" / "main.cf").write_text("".join(lines), encoding="utf-8")
