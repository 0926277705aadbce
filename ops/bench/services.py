"""What is measured: Vestibule on embedded servers, a bare Quart route, and the mail server that plays along."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from client import Connection
from machine import free_ports

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

HOST = "127.0.0.1"
START_SECONDS = 30.0
OPEN = ("REGISTER", "ACTIVATE", "PASSWORD", "PASSWORD_CLIENT", "BASIC")
FOLDER = Path(__file__).parent
VESTIBULE = str(Path(sys.executable).with_name("vestibule"))


@dataclass(frozen=True, slots=True)
class Service:
    """A running service: its port, its first process, the folder of its data, and its log."""

    port: int
    pid: int
    data_dir: Path
    log: Path

    def connections(self, count: int) -> list[Connection]:
        """Return so many connections to it; they open with their first request."""
        return [Connection(HOST, self.port) for _ in range(count)]

    async def metrics(self) -> dict[str, dict[str, int]]:
        """Return its own metrics."""
        [connection] = self.connections(1)
        try:
            found: dict[str, dict[str, int]] = (await connection.request("GET", "/api/v1/metrics")).json()
            return found
        finally:
            connection.close()

    def servers(self) -> dict[str, str]:
        """Return the URLs of its embedded servers."""
        found: dict[str, str] = json.loads((self.data_dir / "servers.json").read_text(encoding="utf-8"))
        return found


@dataclass(frozen=True, slots=True)
class MailSink:
    """The running mail server of sink.py."""

    port: int

    async def order(self, word: str) -> Any:  # noqa: ANN401 - whatever it answers
        """Have it do what sink.py lists."""
        reader, writer = await asyncio.open_connection(HOST, self.port + 1, limit=2**26)
        writer.write(f"{word}\n".encode())
        answer = await reader.readline()
        writer.close()
        return json.loads(answer)

    async def taken(self) -> dict[str, tuple[str, float]]:
        """Return the code of the last mail to each recipient, and when it was accepted."""
        found: dict[str, tuple[str, float]] = await self.order("dump")
        return found


@asynccontextmanager
async def up(cost: int, loop: str, **others: str) -> AsyncIterator[tuple[Service, MailSink]]:
    """Run `vestibule up` with all limits off and the other settings around the body, and its mail server."""
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        sink = MailSink(free_ports(2))
        command = [sys.executable, str(FOLDER / "sink.py"), str(sink.port)]
        stack.enter_context(running(command, dict(os.environ), Path(folder) / "sink.log"))
        settings = {"DATA_DIR": f"{folder}/data", "MAIL_URL": f"smtp://{HOST}:{sink.port}", **others}
        service = await stack.enter_async_context(_started("up", cost, loop, settings, Path(folder) / "log"))
        yield service, sink


@asynccontextmanager
async def beside(service: Service, cost: int, loop: str, **others: str) -> AsyncIterator[Service]:
    """Run `vestibule serve` on the servers of a running service around the body."""
    servers = service.servers()
    settings = {"DATA_DIR": str(service.data_dir), "MAIL_URL": servers["mail_url"], **others}
    with tempfile.TemporaryDirectory() as folder:
        async with _started("serve", cost, loop, settings, Path(folder) / "log") as another:
            yield another


@asynccontextmanager
async def _started(what: str, cost: int, loop: str, settings: dict[str, str], log: Path) -> AsyncIterator[Service]:
    port = free_ports(1)
    chosen = {f"{name}_LIMIT": "off" for name in OPEN} | {
        "BIND": f"{HOST}:{port}",
        "BCRYPT_COST": str(cost),
        "ALLOW_WEAK_HASH": "1",
        "CODE_LIMITS": "off",
        "CODE_TTL_SECONDS": "900",
        "CODE_MAX_AGE_SECONDS": "1800",
        "MAX_REQUESTS": "0",
        "LOOP": loop,
        **settings,
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    environment = plain | {f"VESTIBULE_{name}": value for name, value in chosen.items()}
    with running([VESTIBULE, what], environment, log) as process:
        await answering(port, "/readyz", process, log)
        yield Service(port, process.pid, Path(chosen["DATA_DIR"]), log)


@asynccontextmanager
async def bare_route() -> AsyncIterator[Service]:
    """Run a Quart route that does nothing around the body, on as many Hypercorn workers as the service has."""
    with tempfile.TemporaryDirectory() as folder:
        log, port = Path(folder) / "log", free_ports(1)
        workers = str(max(2, os.cpu_count() or 1))
        command = [sys.executable, "-m", "hypercorn", "-k", "uvloop", "-w", workers, "-b", f"{HOST}:{port}", "bare:app"]
        with running(command, os.environ | {"PYTHONPATH": str(FOLDER)}, log) as process:
            await answering(port, "/", process, log)
            yield Service(port, process.pid, Path(folder), log)


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command in a process group of its own around the body."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own commands
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


async def answering(port: int, path: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Return once the path answers 200 or 404; ends the run with what the process said when it does not."""
    deadline = monotonic() + START_SECONDS
    while process.poll() is None and monotonic() < deadline:
        try:
            if (await Connection(HOST, port).request("GET", path)).status in {200, 404}:
                return
        except (OSError, EOFError):
            await asyncio.sleep(0.05)  # it is starting
    raise SystemExit(f"not ready: {await asyncio.to_thread(log.read_text, errors='replace')}")
