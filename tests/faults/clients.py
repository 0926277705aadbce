"""Clients of a service that fails: each call over a connection and from an address of its own, and no exceptions."""

from __future__ import annotations

import base64
import http.client
import json
import os
import time
from dataclasses import dataclass, field
from itertools import count
from typing import Any

SECRET = "correct horse battery"
NAMES = count(1)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what it says and how long it took; status 0 is no answer at all."""

    status: int
    seconds: float
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def error(self) -> str:
        """The problem's code."""
        return str(self.body.get("error", ""))


@dataclass
class Clients:
    """Asks one service, each call over a connection of its own; from one `address` if it is given."""

    port: int
    timeout: float = 15.0
    address: str = ""

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        """Ask once, from an address that nobody else has unless one is given, and never raise."""
        began, number = time.monotonic(), next(NAMES)
        own = f"127.{1 + number // 62500 % 250}.{1 + number // 250 % 250}.{1 + number % 250}"
        source = (self.address or own, 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout, source_address=source)
        content = None if body is None else json.dumps(body)
        sent = {"Content-Type": "application/json"} if body is not None else {}
        try:
            connection.request(method, path, content, sent | {k.replace("_", "-"): v for k, v in headers.items()})
            got = connection.getresponse()
            raw, head = got.read(), {name.lower(): value for name, value in got.getheaders()}
            is_json = "json" in head.get("content-type", "")
            return Answer(got.status, time.monotonic() - began, head, json.loads(raw) if is_json else {})
        except (OSError, http.client.HTTPException):
            return Answer(0, time.monotonic() - began)
        finally:
            connection.close()

    def register(self, name: str, **headers: str) -> Answer:
        """Register NAME@example.com."""
        body = {"email": f"{name}@example.com", "password": SECRET}
        return self.ask("POST", "/api/v1/users/register", body, **headers)

    def activate(self, name: str, code: str) -> Answer:
        """Activate it."""
        return self.ask("POST", "/api/v1/users/activate", {"activation_code": code}, **_basic(name))

    def resend(self, name: str) -> Answer:
        """Ask for another code."""
        return self.ask("POST", "/api/v1/users/resend", **_basic(name))

    def me(self, name: str) -> Answer:
        """Read the account."""
        return self.ask("GET", "/api/v1/users/me", **_basic(name))

    def activation(self, name: str) -> Answer:
        """Ask where the registration stands."""
        return self.ask("GET", "/api/v1/users/activation", **_basic(name))

    def ready(self) -> bool:
        """Return whether /readyz answers 200."""
        return self.ask("GET", "/readyz").status == 200


def new() -> str:
    """Return a name that nobody has."""
    return f"p{os.getpid()}-{next(NAMES)}"


def _basic(name: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{name}@example.com:{SECRET}".encode()).decode()}
