"""A generation: imports the application once, forks the API workers from it, and replaces those that end.

It forks before any thread, pool or loop exists, so all workers share its pages. SIGTERM asks it to leave behind a newer
generation: its workers finish what their clients have begun. SIGUSR2 is the final stop: they drain first.
"""

from __future__ import annotations

import gc
import socket
from typing import TYPE_CHECKING

from loguru import logger

from service import logging
from service.processes.children import BEAT, LEAVE, READY, STOP, Child, Processes, Service, report
from service.processes.spawn import set_title
from service.processes.worker import serve

if TYPE_CHECKING:
    import signal

    from service.processes.worker import Open
    from service.settings import Settings


class Generation(Processes):
    """Keeps the workers running until it is told to leave; `pipe` is where it reports to the supervisor."""

    def __init__(self, settings: Settings, listener: int, pipe: int, opened: Open) -> None:
        super().__init__()
        self._settings = settings
        self._listener = socket.socket(fileno=listener)
        self._pipe = pipe
        self._opened = opened
        grace = settings.grace_seconds
        self.services = [Service(f"api-{number}", grace) for number in range(1, settings.workers + 1)]
        self._announced = self._failed = False
        logging.configure(settings, "generation", threaded=False)

    def run(self) -> int:
        """Serve until told to leave and every worker has ended; return 0, or 1 if not all workers could start."""
        gc.collect()
        gc.freeze()  # what is shared now stays shared: the collector would write to its pages
        while not self.stopping or self.children():
            if not self.stopping:
                self.fill()
            self.turn()
            for service in self.services:
                if service.ready():
                    self.replace(service)
            report(self._pipe, BEAT)
            if not self._announced and all(service.ready() for service in self.services):
                self._announced = True
                report(self._pipe, READY)
        return int(self._failed)

    def start(self, service: Service) -> Child:
        """Fork a worker."""

        def work(pipe: int) -> int:
            set_title(service.name.replace("api-", "api worker "))
            return serve(self._settings, service.name, self._listener, pipe, self._opened)

        return self.launch(service.name, work)

    def told(self, signalled: signal.struct_siginfo) -> None:
        """Leave, or stop; anything else is the supervisor's business."""
        if signalled.si_signo in {LEAVE, STOP}:
            self._leave(signalled.si_signo)

    def log(self, level: str, message: str, **extras: object) -> None:
        """Write a line."""
        logger.log(level, message, **extras)

    def ended(self, child: Child, code: int) -> None:
        """Take note of it; new code that does not start is not for us to try again."""
        super().ended(child, code)
        if not self._announced and not child.leaving:
            self._failed = True
            self._leave(LEAVE)

    def _leave(self, number: int) -> None:
        self.stopping = True
        self._listener.close()  # of which the workers have their own copies
        drain = self._settings.drain_seconds if number == STOP else 0
        for child in self.children():
            child.stop(number, self._settings.grace_seconds + drain)
