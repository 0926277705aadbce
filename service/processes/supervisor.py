"""The supervisor: holds the listening socket and the pid file, keeps every process of one machine running.

One thread, no loop, and the standard library alone: settings are read by a short-lived child, which prints the plan. A
reload starts a new generation and new mail workers beside the old ones and lets the old ones go when the new ones are
ready; there is nothing to hand over.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.processes import spawn
from service.processes.children import STOP, Child, Processes, Service
from service.processes.listener import CannotStart, address_of, forget, open_listener, pid_file_holder, take_pid_file
from service.processes.spawn import execute, set_title

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    Command = Callable[..., list[str]]  # the command line for some words of ours

VERSION = 2  # of the plan, of the command lines of children, and of what they report
PLAN_SECONDS = 120.0  # a migration may wait a minute for another one
API = "api"  # the service whose child is a generation
API_TIER, MAIL_TIER, FIRST_SERVER = 0, 1, 2  # the order of the stop
SERVER_SECONDS = 10.0  # for an embedded server to end in order
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, as plain values; the JSON that the child prints has these names and `version`.

    `servers` are embedded servers in the order of their start, each a name and a stop signal.
    """

    bind: str | None  # None: no API workers
    data_dir: str
    grace: float
    drain: float
    mail_workers: int
    servers: list[tuple[str, int]]
    log_level: str
    log_format: str
    guide: list[str]  # lines for a person, once everything runs; {address} stands for where it listens

    @classmethod
    def read(cls, text: str) -> Plan:
        """Read the child's line; raises CannotStart for one of another version."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop("version") == VERSION:
                return cls(**values)
        except (ValueError, TypeError, KeyError, AttributeError):
            pass
        raise CannotStart("the code on disk is of another version: restart the supervisor")


class Log:
    """Writes the supervisor's own lines, in the format that every process writes; silent until the plan is known."""

    def __init__(self, form: str = "json", level: str = "") -> None:
        self._json = form == "json"
        self._levels = LEVELS[LEVELS.index(level) :] if level else ()

    def write(self, level: str, message: str, **extras: object) -> None:
        """Write one line to stdout; a reader that does not take it loses it."""
        if level not in self._levels:
            return
        now = time.time()
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03}Z"
        if self._json:
            line = json.dumps({"time": clock, "level": level, "message": message, "worker": "supervisor", **extras})
        else:
            shown = "".join(f"  {name}={json.dumps(value)}" for name, value in extras.items())
            line = f"{clock[11:23]} {level:<8}supervisor {message}{shown}"
        _, writable, _ = select.select((), (1,), (), 0)
        if writable:
            with suppress(OSError):
                os.write(1, line.encode() + b"\n")


class Supervisor(Processes):
    """Runs `vestibule up`, `serve` or `worker` until SIGTERM or SIGINT; `command` makes command lines for children."""

    def __init__(self, mode: str, command: Command = spawn.command) -> None:
        super().__init__()
        self._mode = mode
        self._command = command
        self._on_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and has_terminal()  # not under nohup
        self._log = Log()
        self._plan: Plan
        self._step = ""  # of the plan, which a child of its own does
        self._planning: Child | None = None
        self._generation = 0
        self._listener: socket.socket | None = None
        self._pid_file: int | None = None
        self._prepared = self._announced = self._reloading = self._again = False
        self._refusal: CannotStart | None = None

    def run(self) -> int:
        """Start everything, keep it running, stop it in order; return the exit code. Raises CannotStart."""
        set_title("supervisor")
        self._ask("start")
        try:
            while not self.stopping or self.children():
                self.turn()
                if self.stopping:
                    self._stop_next()
                else:
                    self._go_on()
        finally:
            for child in self.children():  # none, unless we have failed
                child.kill()
            if self._listener is not None and self._plan.bind is not None:
                forget(self._plan.bind)
            if self._pid_file is not None:
                os.ftruncate(self._pid_file, 0)
        if self._refusal is not None:
            raise self._refusal
        return 0

    def log(self, level: str, message: str, **extras: object) -> None:
        """Write a line."""
        self._log.write(level, message, **extras)

    def told(self, signalled: signal.struct_siginfo) -> None:
        """Reload or stop; while stopping nothing changes that."""
        number = signalled.si_signo
        if number == signal.SIGHUP and not self._hung_up(signalled):
            self._again = True
        elif number != STOP and not self.stopping:
            self.log("INFO", "stopping", signal=signal.Signals(number).name, drain_seconds=self._drain())
            self._stop()

    def _hung_up(self, signalled: signal.struct_siginfo) -> bool:
        """Return whether a SIGHUP says that the terminal is closed: it comes from the kernel, or from the shell."""
        passed_on = signalled.si_code > 0 or signalled.si_pid == os.getsid(0)
        return self._on_terminal and passed_on and not has_terminal()

    # -- the plan -----------------------------------------------------------------------------------------------------

    def _ask(self, step: str, *arguments: str) -> None:
        """Have a child do a step of the plan; the last line that it prints is the plan, or why there is none."""
        argv = self._command("plan", self._mode, step, *arguments)

        def work(pipe: int) -> int:
            os.dup2(pipe, 1)
            os.dup2(pipe, 2)
            execute(argv)

        self._step = step
        self._planning = self.launch("plan", work, reports=False)
        self._planning.patience = PLAN_SECONDS
        self.others.append(self._planning)

    def _planned(self, said: str, code: int) -> None:
        """Take what a step has printed; what cannot be started ends the supervisor, or only the reload."""
        self._planning = None
        last = (said.strip().splitlines() or [f"the settings could not be read: their reader ended with {code}"])[-1]
        try:
            if code != 0:
                refusal = CannotStart(last.removeprefix("vestibule: "))
                refusal.code = max(code, 1)
                raise refusal
            self._start_step(last)
        except CannotStart as refusal:
            if self._step == "reload":
                self._refuse_reload(str(refusal))
            else:
                self._refusal = refusal
                self._stop()

    def _start_step(self, said: str) -> None:
        """Start what a step of the plan was waited for."""
        if self._step == "prepare":
            self._prepared = True
            return
        self._plan = Plan.read(said)
        if self._step == "reload":
            self._reloading = True
            for service in self.services:
                if service.tier < FIRST_SERVER:
                    service.successor = self.start(service)
            return
        self._log = Log(self._plan.log_format, self._plan.log_level)
        self._take_pid_file()
        if self._plan.bind is not None:
            self._listener = open_listener(self._plan.bind)
        self.services = list(self._planned_services(self._plan))
        self._prepared = self._mode != "up"
        if self._mode == "up":
            servers = [service for service in self.services if service.tier >= FIRST_SERVER]
            for server in servers:
                server.child = self.start(server)
            self._ask("prepare", *(f"{one.name}={one.child.pid}" for one in servers if one.child))

    def _take_pid_file(self) -> None:
        try:
            self._pid_file = take_pid_file(Path(self._plan.data_dir)) if self._mode != "worker" else None
        except CannotStart as refusal:
            if self._mode == "up":
                raise
            self.log("WARNING", "`vestibule reload` will not find this supervisor", reason=str(refusal))

    @staticmethod
    def _planned_services(plan: Plan) -> Iterator[Service]:
        for tier, (name, stop_signal) in enumerate(reversed(plan.servers), FIRST_SERVER):
            yield Service(name, SERVER_SECONDS, ("server", name), tier, stop_signal)
        if plan.bind is not None:
            yield Service(API, plan.grace, ("generation",), API_TIER, STOP)
        for number in range(1, plan.mail_workers + 1):
            yield Service(f"mail-{number}", plan.grace, ("worker", "--supervised"), MAIL_TIER)

    def start(self, service: Service) -> Child:
        """Execute a service's program; what reports gets a pipe, the generation the listening socket too."""
        server, words, descriptors = service.tier >= FIRST_SERVER, [*service.words], []
        if service.name == API and self._listener is not None:
            self._generation += 1
            descriptors.append(self._listener.fileno())
            words += ["--number", str(self._generation), "--listener", str(descriptors[0])]

        def work(pipe: int) -> int:
            if server:
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # until it does not end with a traceback
                execute(self._command(*words))
            execute(self._command(*words, "--pipe", str(pipe)), pipe, *descriptors)

        child = self.launch(service.name, work, reports=not server)
        child.ready = server
        return child

    # -- while it runs ------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Take the next step of a start or a reload."""
        if not self._prepared:  # a server that ends now is a start that failed
            return
        self.fill()
        ready = all(service.ready() for service in self.services)
        if self._reloading and ready:
            self._reloading = False
            for service in self.services:
                self.replace(service)
            self.log("INFO", "reloaded", generation=self._generation)
        if not self._announced and ready:
            self._announced = True
            self._announce()
        if self._again and self._planning is None and not self._reloading:
            self._again = False
            self.log("INFO", "reload asked for")
            self._ask("reload")

    def ended(self, child: Child, code: int) -> None:
        """Take note of it; a plan is read, and a new process that ends before it was ready fails the reload."""
        if child is self._planning:
            said = child.read().decode(errors="replace")
            os.close(child.pipe)
            self.others.remove(child)
            if not self.stopping:
                self._planned(said, code)
            return
        new = any(child is service.successor for service in self.services)
        super().ended(child, code)
        if new and not child.leaving:
            self._refuse_reload(f"{child.name} ended with {code} before it was ready")

    def _refuse_reload(self, reason: str) -> None:
        """Say why a reload changes nothing, and let go what it has started, which may have taken requests."""
        self.log("ERROR", "reload refused, what runs goes on", reason=reason)
        self._reloading = False
        for service in self.services:
            if service.successor is not None:
                self.let_go(service.successor, service.grace)
                service.successor = None

    def _announce(self) -> None:
        if self._listener is None:
            return
        address = address_of(self._listener)
        if self._plan.log_format == "text":
            with suppress(OSError):
                sys.stdout.write("\n".join(line.format(address=address) for line in self._plan.guide) + "\n")
                sys.stdout.flush()
        else:
            self.log("INFO", f"Vestibule runs on {address}", address=address)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Begin to stop: the workers drain with their own copies of the listening socket."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for child in self.others:
            if child is self._planning:
                child.stop(signal.SIGKILL, 0)
            elif child.name == API:
                child.signal(STOP)  # it waits for idle connections no longer

    def _stop_next(self) -> None:
        """Ask the lowest tier that still runs to end; the old ones use the servers too."""
        running = [service for service in self.services if service.children()]
        tier = min((service.tier for service in running), default=FIRST_SERVER)
        for service in running:
            for child in service.children():
                waits = service.tier > tier or (tier >= FIRST_SERVER and self.others)
                if not waits and not child.leaving:
                    child.stop(service.stop_signal, service.grace + (self._drain() if tier == API_TIER else 0))

    def _drain(self) -> float:
        return self._plan.drain if self._announced else 0.0


def has_terminal() -> bool:
    """Return whether this session has a terminal that is not closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def run(mode: str) -> int:
    """Run `vestibule up`, `serve` or `worker`; return the exit code."""
    try:
        return Supervisor(mode).run()
    except CannotStart as refusal:
        sys.stderr.write(f"vestibule: {refusal}\n")
        return refusal.code


def reload(data_dir: Path) -> int:
    """Ask the supervisor of DATA_DIR to reload; raises CannotStart when there is none."""
    pid = pid_file_holder(data_dir)
    if pid is None:
        raise CannotStart(f"no `vestibule up` or `vestibule serve` runs in {data_dir}")
    os.kill(pid, signal.SIGHUP)
    return pid


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
