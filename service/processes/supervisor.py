"""The supervisor: holds the listening socket and the pid file, keeps every process of one machine running.

One thread, no loop, and the standard library alone: settings are read by a short-lived child, which prints the plan. A
reload starts a new generation and new mail workers beside the old ones and lets the old ones go when the new ones are
ready; there is nothing to hand over.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from service.processes import pid_file, spawn
from service.processes.console import Log, Terminal
from service.processes.listener import CannotStart, address_of, forget, open_listener
from service.processes.planning import Plan, Planning
from service.processes.spawn import program, set_title
from service.processes.watch import Backoff, Child, Watch

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    Command = Callable[..., list[str]]  # the command line for some words of ours

API = "api"  # the service whose child is a generation
API_TIER, MAIL_TIER, FIRST_SERVER = 0, 1, 2  # the order of the stop
SERVER_SECONDS = 10.0  # for an embedded server to end in order


class Stopped(Exception):
    """A signal to stop has come before everything was started."""


@dataclass(slots=True, eq=False)
class Service:
    """One process to keep running. Services of a lower tier stop first; `reloads` are replaced by SIGHUP."""

    name: str
    words: tuple[str, ...]
    tier: int
    grace: float
    stop_signal: int = signal.SIGTERM
    reloads: bool = True
    child: Child | None = None
    successor: Child | None = None  # of a reload that is under way
    backoff: Backoff = field(default_factory=Backoff)
    due: float = 0.0

    def children(self) -> list[Child]:
        """Return the running ones."""
        return [child for child in (self.child, self.successor) if child is not None]


class Supervisor:
    """Runs `vestibule up`, `serve` or `worker` until SIGTERM or SIGINT; `command` makes command lines for children."""

    def __init__(self, mode: str, command: Command = spawn.command) -> None:
        self._mode = mode
        self._command = command
        self._generation = 0
        self._services: list[Service] = []
        self._old: list[Child] = []  # replaced children that finish what was begun
        self._planning: Planning | None = None
        self._listener: socket.socket | None = None
        self._announced = self._reloading = self._again = False
        self._holds_pid_file = False
        self._stopping_since: float | None = None
        self._stopping_tier: int | None = None

    def run(self) -> int:
        """Start everything, keep it running, stop it in order; return the exit code. Raises CannotStart."""
        set_title("supervisor")
        self._terminal = Terminal()
        self._watch = Watch(signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        refused: CannotStart | None = None
        try:
            self._start_all()
        except (Stopped, CannotStart) as reason:
            refused = reason if isinstance(reason, CannotStart) else None
            self._stopping_since = time.monotonic()
        try:
            self._keep()
        finally:
            for child in self._children():  # none, unless we have failed
                child.kill()
            if self._listener is not None:
                forget(self._listener)
            if self._holds_pid_file:
                with suppress(OSError):
                    (Path(self._plan.data_dir) / pid_file.NAME).unlink()
        if refused is not None:
            raise refused
        return 0

    # -- start --------------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        """Start the embedded servers, wait until they serve, prepare the database, and start the workers."""
        self._plan = Plan.read(self._planned("start"))
        self._log = Log(self._plan.log_format, self._plan.log_level)
        if self._mode != "worker":
            self._take_pid_file()
        if self._plan.bind is not None:
            self._listener = open_listener(self._plan.bind)
        for tier, (name, stop_signal) in enumerate(reversed(self._plan.servers), FIRST_SERVER):
            service = Service(name, ("server", name), tier, SERVER_SECONDS, stop_signal, reloads=False)
            self._services.insert(0, service)
        for service in self._services:
            service.child = self._start(service)
        if self._mode == "up":
            self._planned("prepare", *(f"{one.name}={one.child.pid}" for one in self._services if one.child))
        grace = self._plan.grace
        if self._listener is not None:
            self._services.append(Service(API, ("generation",), API_TIER, grace, signal.SIGUSR2))
        for number in range(1, self._plan.mail_workers + 1):
            self._services.append(Service(f"mail-{number}", ("worker", "--supervised"), MAIL_TIER, grace))

    def _take_pid_file(self) -> None:
        try:
            self._holder = pid_file.take(Path(self._plan.data_dir))  # open for as long as we live
            self._holds_pid_file = self._holder is not None
            refusal = "" if self._holds_pid_file else f"{self._plan.data_dir} is in use by another supervisor"
        except CannotStart as reason:
            refusal = str(reason)
        if refusal and self._mode == "up":
            raise CannotStart(refusal)
        if refusal:
            self._log.write("WARNING", "`vestibule reload` will not find this supervisor", reason=refusal)

    def _planned(self, step: str, *arguments: str) -> str:
        """Return what a step of the plan prints; raises CannotStart with its line of error, Stopped after a signal."""
        self._planning = planning = Planning(self._command("plan", self._mode, step, *arguments))
        while planning.code is None and self._stopping_since is None:
            self._turn()
        if self._stopping_since is not None:
            raise Stopped
        self._planning = None
        return planning.result()

    def _start(self, service: Service) -> Child:
        """Start a service's process; what reports gets a pipe, the generation the listening socket too."""
        words, descriptors, reading = list(service.words), [], None
        if service.name == API and self._listener is not None:
            self._generation += 1
            words += ["--number", str(self._generation), "--listener", str(self._listener.fileno())]
            descriptors.append(self._listener.fileno())
        if service.reloads:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            words += ["--pipe", str(writing)]
            descriptors.append(writing)
        pid = program(self._command(*words), os.environ, descriptors=descriptors)
        if service.reloads:
            os.close(writing)
        child = Child(service.name, pid, reading, ready=reading is None)
        self._watch.add(child)
        return child

    # -- while it runs ------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._stopped():
            for service in self._services:
                if service.child is None and self._stopping_since is None and time.monotonic() >= service.due:
                    service.child = self._start(service)
            self._turn()
            self._continue_reload()
            if not self._announced and all(one.child is not None and one.child.ready for one in self._services):
                self._announced = True
                self._announce()

    def _turn(self) -> None:
        """Wait for a moment at most, and take note of what has happened."""
        self._terminal.lost()
        for number in self._watch.wait():
            self._signalled(number)
        for pid, code in self._watch.ended():
            self._ended(pid, code)
        for child in self._children():
            if why := child.overdue(time.monotonic()):
                self._log.write("ERROR", "killed", child=child.name, pid=child.pid, reason=why)
                child.kill()
        if self._planning is not None:
            self._planning.kill_overdue()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP and not self._terminal.lost():
            self._again = True
        elif self._stopping_since is None:
            self._stopping_since = time.monotonic()
            if self._planning is not None:
                self._planning.kill()
            if self._services:
                name, drain = signal.Signals(number).name, self._drain_seconds()
                self._log.write("INFO", "stopping", signal=name, drain_seconds=drain)

    def _ended(self, pid: int, code: int) -> None:
        """Take note of a child that has ended; one that nobody has asked to is started again."""
        if self._planning is not None and pid == self._planning.pid:
            self._planning.code = code
        child = next((child for child in self._children() if child.pid == pid), None)
        if child is None:
            return
        child.sweep()
        self._watch.remove(child)
        self._log.write("INFO" if child.leaving else "WARNING", "ended", child=child.name, pid=pid, code=code)
        if child in self._old:
            self._old.remove(child)
            return
        service = next(one for one in self._services if child in one.children())
        if child is service.successor:
            service.successor = None
            if not child.leaving:
                self._refuse_reload(f"{service.name} ended with {code} before it was ready")
        else:
            service.child = None
            delay = service.backoff.delay(time.monotonic() - child.started)
            successor = service.successor is not None  # it takes over
            service.due = math.inf if successor else time.monotonic() + delay

    def _children(self) -> list[Child]:
        return [*(child for service in self._services for child in service.children()), *self._old]

    def _announce(self) -> None:
        if self._listener is None:
            return
        address = address_of(self._listener)
        if self._plan.log_format == "text":
            with suppress(OSError):
                sys.stdout.write("\n".join(line.format(address=address) for line in self._plan.guide) + "\n")
                sys.stdout.flush()
        else:
            self._log.write("INFO", f"Vestibule runs on {address}", address=address)

    # -- reload -------------------------------------------------------------------------------------------------------

    def _continue_reload(self) -> None:
        """Take the next step of a reload: a plan of its own checks the new settings, then what is new gets ready."""
        if self._stopping_since is not None:
            return
        if self._planning is not None and self._planning.code is not None:
            planning, self._planning = self._planning, None
            try:
                self._plan = Plan.read(planning.result())
            except CannotStart as reason:
                self._refuse_reload(str(reason))
            else:
                self._reloading = True
                for service in filter(lambda one: one.reloads, self._services):
                    service.successor = self._start(service)
        if self._reloading and all(one.successor and one.successor.ready for one in self._services if one.reloads):
            self._replace()
        if self._again and self._planning is None and not self._reloading:
            self._again = False
            self._log.write("INFO", "reload asked for")
            self._planning = Planning(self._command("plan", self._mode, "reload"))

    def _replace(self) -> None:
        """Let the old children go, now that the new ones are ready."""
        self._reloading = False
        for service in self._services:
            if service.child is not None and service.successor is not None:
                self._let_go(service.child, service.grace)
            service.child, service.successor = service.successor or service.child, None
        self._log.write("INFO", "reloaded", generation=self._generation)

    def _refuse_reload(self, reason: str) -> None:
        """Say why a reload changes nothing, and let go what it has started, which may have taken requests."""
        self._log.write("ERROR", "reload refused, what runs goes on", reason=reason)
        self._reloading = False
        for service in self._services:
            if service.successor is not None:
                self._let_go(service.successor, service.grace)
                service.successor = None
            if service.due == math.inf:
                service.due = time.monotonic()

    def _let_go(self, child: Child, grace: float) -> None:
        child.stop(signal.SIGTERM, grace)
        self._old.append(child)

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _stopped(self) -> bool:
        """Take the next step of an orderly stop; True when nothing is left."""
        if self._stopping_since is None:
            return False
        if self._listener is not None and time.monotonic() >= self._stopping_since + self._drain_seconds():
            forget(self._listener)
            self._listener = None
        tier = min((service.tier for service in self._services if service.children()), default=None)
        if tier is None or (tier >= FIRST_SERVER and self._old):  # the old ones use the servers too
            return tier is None and not self._old
        if self._stopping_tier is None:
            for child in self._old:
                child.signal(signal.SIGUSR2 if child.name == API else signal.SIGTERM)
        if tier != self._stopping_tier:
            self._stopping_tier = tier
            for service in self._services:
                for child in service.children() if service.tier == tier else ():
                    child.stop(service.stop_signal, service.grace + (self._drain_seconds() if tier == API_TIER else 0))
        return False

    def _drain_seconds(self) -> float:
        return self._plan.drain if self._announced else 0.0


def run(mode: str) -> int:
    """Run `vestibule up`, `serve` or `worker`; return the exit code."""
    try:
        return Supervisor(mode).run()
    except CannotStart as refusal:
        sys.stderr.write(f"vestibule: {refusal}\n")
        return refusal.code


def reload(data_dir: Path) -> int:
    """Ask the supervisor of DATA_DIR to reload; raises CannotStart when there is none."""
    pid = pid_file.holder(data_dir)
    if pid is None:
        raise CannotStart(f"no `vestibule up` or `vestibule serve` runs in {data_dir}")
    os.kill(pid, signal.SIGHUP)
    return pid


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
