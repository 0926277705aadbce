"""Clients of a chaos run: they do what the documents tell clients to do, and remember what they were told."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import TYPE_CHECKING, Self
from uuid import uuid4

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.clients import Answer, Clients

REGISTRARS, ACTIVATORS = 24, 6
PATIENCE_SECONDS = 90.0  # a client gives up then; no outage of a run lasts so long
LOOK_SECONDS = 0.05
AGAIN = {0, 429, 503}  # what is repeated: no answer, and what says so


@dataclass
class Told:
    """What the clients heard: the id of each 201, who is active, everything that should not have been said."""

    ids: dict[str, str] = field(default_factory=dict)
    active: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    strange: list[str] = field(default_factory=list)
    retries: int = 0
    longest: float = 0.0  # from a client's first try to its 201


@dataclass(frozen=True, slots=True)
class Mail:
    """One line of the mail server's file."""

    to: str
    code: str
    at: float


class Crowd:
    """Registers names at a steady pace over the body's time, and activates whoever has mail."""

    def __init__(self, clients: Clients, names: list[str], seconds: float, mails: Path) -> None:
        self.told = Told()
        self.mails: list[Mail] = []
        self._clients = clients
        self._names = names
        self._pace = seconds / len(names)
        self._file = mails
        self._due: Queue[str] = Queue()
        self._rung: Queue[Mail] = Queue()
        self._done = threading.Event()
        self._guard = threading.Lock()

    def __enter__(self) -> Self:
        self._registrars = [threading.Thread(target=self._registering) for _ in range(REGISTRARS)]
        others = [self._reading, *[self._activating] * ACTIVATORS]
        self._others = [threading.Thread(target=work) for work in others]
        for thread in [*self._registrars, *self._others]:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in [*self._registrars, *self._others]:
            thread.join()

    def arrive(self) -> None:
        """Send everybody, one after the other at the pace; return when the last one has its answer."""
        began = time.monotonic()
        for number, name in enumerate(self._names):
            self._done.wait(max(0.0, began + number * self._pace - time.monotonic()))
            self._due.put(name)
        for _ in self._registrars:
            self._due.put("")
        for thread in self._registrars:
            thread.join()

    def settle(self, seconds: float) -> None:
        """Wait until everybody who has a 201 is active, or for so long."""
        until = time.monotonic() + seconds
        while len(self.told.active) < len(self.told.ids) and time.monotonic() < until:
            self._done.wait(LOOK_SECONDS)

    def _registering(self) -> None:
        while name := self._due.get():
            key, began = uuid4().hex, time.monotonic()
            while True:
                answer = self._clients.register(name, Idempotency_Key=key)
                if answer.status == 201:
                    with self._guard:
                        self.told.ids[name] = answer.body["id"]
                        self.told.longest = max(self.told.longest, time.monotonic() - began)
                    break
                if time.monotonic() - began > PATIENCE_SECONDS or not self._again(answer, "register"):
                    self.told.unanswered.add(name)
                    break

    def _again(self, answer: Answer, call: str) -> bool:
        """Wait as told and return whether the call is to be repeated; note an answer that nobody should get."""
        if answer.status not in AGAIN and answer.error != "RequestInProgress":
            self.told.strange.append(f"{call}: {answer.status} {answer.error}")
            return False
        self.told.retries += 1
        self._done.wait(float(answer.headers.get("retry-after", 0.3)))
        return True

    def _reading(self) -> None:
        """Follow the mail server's file."""
        read = 0
        while not self._done.wait(LOOK_SECONDS):
            if not self._file.exists():
                continue
            lines = self._file.read_text(encoding="utf-8").split("\n")[:-1]
            for line in lines[read:]:
                mail = Mail(**json.loads(line))
                self.mails.append(mail)
                self._rung.put(mail)
            read = len(lines)

    def _activating(self) -> None:
        while not self._done.is_set():
            try:
                mail = self._rung.get(timeout=LOOK_SECONDS)
            except Empty:
                continue
            name = mail.to.partition("@")[0]
            while name not in self.told.active and not self._done.is_set():
                answer = self._clients.activate(name, mail.code)
                if answer.status == 200 or answer.error == "UserAlreadyActivated":
                    self.told.active.add(name)
                elif not self._again(answer, f"activate {time.time() - mail.at:.0f} s after the mail"):
                    break
