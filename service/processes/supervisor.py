"""The supervisor: holds the listening socket and the pid file, keeps every process of one machine running.

One thread, no loop, and the standard library alone: settings are read by a short-lived child, the plan, which prints
one line of JSON or one line of error. A reload starts a new generation and new mail workers beside the old ones and
lets the old ones go when the new ones are ready; there is nothing to hand over.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.processes.listener import CannotStart, address_of, forget, open_listener
from service.processes.spawn import command, program, set_title
from service.processes.watch import Backoff, Child, Watch

if TYPE_CHECKING:
    from collections.abc import Iterable

VERSION = 1  # of the plan, and of what is said on the command lines of children
PLAN_SECONDS = 120.0  # a migration may wait a minute for another one
PID_FILE = "vestibule.pid"
TERMINAL_SECONDS = 5.0  # a shell passes the loss of its terminal on at once; a later SIGHUP is a reload
LEVELS = {"DEBUG": 10, "INFO": 20, "WARNING": 30, "ERROR": 40}
API = "api"  # the service whose child is a generation


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run, as plain values; the JSON that the plan's child prints has these names and `version`.

    `servers` are embedded servers in the order of their start, each a name and a stop signal.
    """

    bind: str
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
        values: dict[str, Any] = json.loads(text)
        if values.pop("version", None) != VERSION:
            raise CannotStart("the code on disk is of another version: restart the supervisor")
        return cls(**values)


@dataclass(slots=True, eq=False)
class Service:
    """One process to keep running. Services of a lower tier stop first; `reloads` are replaced by SIGHUP."""

    name: str
    argv: list[str]
    tier: int
    grace: float
    stop_signal: int = signal.SIGTERM
    reloads: bool = True
    child: Child | None = None
    successor: Child | None = None  # of a reload that is under way
    backoff: Backoff = field(default_factory=Backoff)
    due: float = 0.0


class Supervisor:
    """Runs `vestibule up` or `vestibule serve` until SIGTERM or SIGINT."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._generation = 0
        self._services: list[Service] = []
        self._old: list[Child] = []  # replaced children that finish what was begun
        self._planning: subprocess.Popen[str] | None = None
        self._reloading = self._again = self._announced = False
        self._stopping_since: float | None = None
        self._terminal = Terminal()

    def run(self) -> int:
        """Start everything, keep it running, stop it in order; return the exit code."""
        set_title("supervisor")
        self._watch = Watch(signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
        self._plan = Plan.read(plan(self._mode, "start"))
        self._log = Log(self._plan.log_format, self._plan.log_level)
        with suppress(OSError):
            Path(self._plan.data_dir).mkdir(mode=0o700, parents=True, exist_ok=True)
        pid_file = take_pid_file(Path(self._plan.data_dir))
        if pid_file is None and self._mode == "up":
            raise CannotStart(f"{self._plan.data_dir} is in use by another `vestibule up`")
        if pid_file is None:
            self._log.write("WARNING", "another supervisor keeps the pid file", path=self._plan.data_dir)
        self._listener = open_listener(self._plan.bind)
        try:
            self._start_servers()
            self._services += self._workers()
            self._keep()
        except KeyboardInterrupt:
            pass  # told to stop before anything was accepted
        except BaseException:
            self._kill_everything()
            raise
        finally:
            self._stop_now()
            if pid_file is not None:
                with suppress(OSError):
                    (Path(self._plan.data_dir) / PID_FILE).unlink()
        return 0

    # -- start --------------------------------------------------------------------------------------------------------

    def _start_servers(self) -> None:
        """Start the embedded servers, wait until they serve, and prepare the database."""
        for tier, (name, stop_signal) in enumerate(reversed(self._plan.servers), 2):
            argv = command("server", name)
            self._services.insert(0, Service(name, argv, tier, 10.0, stop_signal, reloads=False))
        for service in self._services:
            self._start(service)
        if self._mode == "up":
            plan(self._mode, "prepare", *(f"{one.name}={one.child.pid}" for one in self._services if one.child))

    def _workers(self) -> list[Service]:
        """Return the services that a reload replaces: the generation, and the mail workers of `up`."""
        plan = self._plan
        api = Service(API, command("generation"), 0, plan.grace, signal.SIGUSR2)
        number = plan.mail_workers if self._mode == "up" else 0
        return [
            api,
            *(Service(f"mail-{n}", command("worker", "--supervised"), 1, plan.grace) for n in range(1, number + 1)),
        ]

    def _start(self, service: Service) -> Child:
        """Start a service's process; what reports gets a pipe, the generation the listening socket too."""
        reading, writing = os.pipe2(os.O_CLOEXEC) if service.reloads else (None, None)
        extra, descriptors = [], []
        if service.name == API:
            self._generation += 1
            extra += ["--number", str(self._generation), "--listener", str(self._listener.fileno())]
            descriptors.append(self._listener.fileno())
        if writing is not None:
            extra += ["--pipe", str(writing)]
            descriptors.append(writing)
        pid = program([*service.argv, *extra], os.environ, descriptors=descriptors)
        if writing is not None:
            os.close(writing)
        child = Child(service.name, pid, reading, ready=reading is None)
        self._watch.add(child)
        if service.child is None:
            service.child = child
        return child

    # -- while it runs ------------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        while not self._stopped():
            self._terminal.look()
            now = time.monotonic()
            for service in self._services:
                if service.child is None and self._stopping_since is None and now >= service.due:
                    self._start(service)
            for number in self._watch.wait():
                self._signalled(number)
            for pid, code in self._watch.ended():
                self._ended(pid, code)
            self._kill_overdue()
            self._continue_reload()
            if not self._announced and all(one.child is not None and one.child.ready for one in self._services):
                self._announced = True
                self._announce()

    def _signalled(self, number: int) -> None:
        if number == signal.SIGHUP and not self._terminal.look():
            self._reload()
        elif self._stopping_since is None:
            self._stopping_since = time.monotonic()
            self._log.write("INFO", "stopping", signal=signal.Signals(number).name, drain_seconds=self._plan.drain)
            self._stop(0)

    def _ended(self, pid: int, code: int) -> None:
        """Take note of a child that has ended; one that nobody has asked to is started again."""
        for service in self._services:
            for child in (service.child, service.successor):
                if child is None or child.pid != pid:
                    continue
                child.kill()  # what it left in its process group
                self._watch.remove(child)
                if child is service.successor:
                    service.successor = None
                    self._fail_reload(f"{service.name} ended with {code} before it was ready")
                else:
                    service.child = None
                    service.due = time.monotonic() + service.backoff.delay(time.monotonic() - child.started)
                    if service.successor is not None:
                        service.due = service.successor.started + PLAN_SECONDS  # the new one is simply it
                if not child.leaving:
                    self._log.write("WARNING", "ended", child=service.name, pid=pid, code=code)
        for child in [child for child in self._old if child.pid == pid]:
            child.kill()
            self._watch.remove(child)
            self._old.remove(child)

    def _kill_overdue(self) -> None:
        now = time.monotonic()
        for child in self._children():
            if why := child.overdue(now):
                self._log.write("ERROR", "killed", child=child.name, pid=child.pid, reason=why)
                child.kill()

    def _children(self) -> list[Child]:
        own = [child for one in self._services for child in (one.child, one.successor) if child is not None]
        return [*own, *self._old]

    def _announce(self) -> None:
        address = address_of(self._listener)
        if self._plan.log_format == "text":
            with suppress(OSError):
                sys.stdout.write("\n".join(line.format(address=address) for line in self._plan.guide) + "\n")
                sys.stdout.flush()
        else:
            self._log.write("INFO", f"Vestibule runs on {address}", address=address)

    # -- reload -------------------------------------------------------------------------------------------------------

    def _reload(self) -> None:
        """Have the new settings checked by a plan of their own; `_continue_reload` goes on when it has ended."""
        if self._stopping_since is not None:
            return
        if self._planning is not None or self._reloading:
            self._again = True
            return
        self._log.write("INFO", "reload asked for")
        self._planning = start_plan(self._mode, "reload")
        self._plan_ends = time.monotonic() + PLAN_SECONDS

    def _continue_reload(self) -> None:
        if self._planning is not None:
            self._judge_plan(self._planning)
        if self._reloading and all(one.successor and one.successor.ready for one in self._services if one.reloads):
            self._replace()
        if self._again and self._planning is None and not self._reloading:
            self._again = False
            self._reload()

    def _judge_plan(self, planning: subprocess.Popen[str]) -> None:
        if planning.poll() is None:
            if time.monotonic() > self._plan_ends:
                planning.kill()
            return
        self._planning = None
        output, errors = planning.communicate()
        if self._stopping_since is not None:
            return
        try:
            plan = Plan.read(finished_plan(planning.returncode, output, errors))
        except (CannotStart, ValueError, TypeError) as refusal:
            self._fail_reload(str(refusal))
            return
        self._plan = plan
        self._reloading = True
        for service in self._services:
            if service.reloads:
                service.successor = self._start(service)

    def _replace(self) -> None:
        """Let the old children go, now that the new ones are ready."""
        self._reloading = False
        for service in self._services:
            if service.successor is not None:
                if service.child is not None:
                    service.child.stop(signal.SIGTERM, service.grace)
                    self._old.append(service.child)
                service.child, service.successor = service.successor, None
        self._log.write("INFO", "reloaded", generation=self._generation)

    def _fail_reload(self, reason: str) -> None:
        """Say why a reload changed nothing, and end what it has started."""
        if self._stopping_since is None:
            self._log.write("ERROR", "reload refused, the old configuration stays", reason=reason)
        self._reloading = False
        for service in self._services:
            if service.successor is not None:
                service.successor.kill()
                self._old.append(service.successor)
                service.successor = None
            if service.child is None:
                service.due = time.monotonic()

    # -- stop ---------------------------------------------------------------------------------------------------------

    def _stop(self, tier: int) -> None:
        """Ask the services of a tier to end; with the first one everything that a reload has started."""
        for service in self._services:
            for child in (service.child, service.successor):
                if service.tier == tier and child is not None and not child.leaving:
                    child.stop(service.stop_signal, service.grace + (self._plan.drain if tier == 0 else 0))
        for child in self._old:
            child.stop(signal.SIGUSR2 if child.name == API else signal.SIGTERM, self._plan.grace)

    def _stopped(self) -> bool:
        """Take the next step of an orderly stop; True when nothing is left."""
        if self._stopping_since is None:
            return False
        if time.monotonic() >= self._stopping_since + self._plan.drain and self._listener.fileno() >= 0:
            forget(self._listener)
        running = [service for service in self._services if service.child is not None or service.successor is not None]
        tier = min((service.tier for service in running), default=None)
        if tier is None:
            return not self._old
        self._stop(tier)
        return False

    def _stop_now(self) -> None:
        if self._planning is not None:
            self._planning.kill()
        if self._listener.fileno() >= 0:
            forget(self._listener)

    def _kill_everything(self) -> None:
        for child in self._children():
            child.kill()


class Terminal:
    """Tells a SIGHUP that follows the loss of the terminal, which is a stop, from one that asks for a reload.

    Without a terminal (under nohup, setsid or a service manager) it is never lost.
    """

    def __init__(self) -> None:
        self._lost_at: float | None = None
        self._descriptor: int | None = None
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            with suppress(OSError):
                self._descriptor = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)

    def look(self) -> bool:
        """Return whether the terminal was lost a moment ago; call it now and then, so that moments are noticed."""
        if self._descriptor is None:
            return False
        hung = select.poll()
        hung.register(self._descriptor, 0)  # nothing but the hang-up, which cannot be masked
        if not hung.poll(0):
            return False
        now = time.monotonic()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now - self._lost_at > TERMINAL_SECONDS:
            os.close(self._descriptor)
            self._descriptor = None
        return self._descriptor is not None


class Log:
    """Writes the supervisor's own lines, in the format that every process writes."""

    def __init__(self, form: str, level: str) -> None:
        self._json = form == "json"
        self._level = LEVELS.get(level, 20)

    def write(self, level: str, message: str, **extras: object) -> None:
        """Write one line to stdout; a reader that does not take it loses it."""
        if LEVELS[level] < self._level:
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


def start_plan(mode: str, step: str, *arguments: str) -> subprocess.Popen[str]:
    """Start the child that reads the settings and tries the servers."""
    return subprocess.Popen(  # noqa: S603 - our own command
        command("plan", mode, step, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def plan(mode: str, step: str, *arguments: str) -> str:
    """Run a step of the plan and return what it prints; raises CannotStart with its line of error."""
    planning = start_plan(mode, step, *arguments)
    try:
        output, errors = planning.communicate(timeout=PLAN_SECONDS)
    except BaseException:
        planning.kill()
        raise
    return finished_plan(planning.returncode, output, errors)


def finished_plan(code: int, output: str, errors: str) -> str:
    """Return a plan's output; raises CannotStart with its last line of error."""
    if code == 0:
        return output
    lines: Iterable[str] = errors.strip().splitlines()
    raise CannotStart(next(reversed(list(lines)), f"the plan ended with {code}").removeprefix("vestibule: "))


def take_pid_file(data_dir: Path) -> int | None:
    """Write our pid to DATA_DIR/vestibule.pid and return the locked descriptor; None when another supervisor has it."""
    try:
        descriptor = os.open(data_dir / PID_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def holder(data_dir: Path) -> int | None:
    """Return the pid of the supervisor that holds the pid file; None if there is none."""
    try:
        with (data_dir / PID_FILE).open("r+", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read())
    except (OSError, ValueError):
        return None
    return None


def run(mode: str) -> int:
    """Run `vestibule up` or `vestibule serve`; return the exit code."""
    try:
        return Supervisor(mode).run()
    except CannotStart as refusal:
        sys.stderr.write(f"vestibule: {refusal}\n")
        return 1


def reload(data_dir: Path) -> int:
    """Ask the supervisor of DATA_DIR to reload; raises CannotStart when there is none."""
    pid = holder(data_dir)
    if pid is None:
        raise CannotStart(f"no `vestibule up` or `vestibule serve` runs in {data_dir}")
    os.kill(pid, signal.SIGHUP)
    return pid
