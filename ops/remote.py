"""Calls a running Vestibule over HTTP, for the scripts here; the standard library alone."""

from __future__ import annotations

import json
import os
import ssl
from base64 import b64encode
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import argparse

DEFAULT_URL = "http://127.0.0.1:8000"
PATIENCE_SECONDS = 10.0  # the service answers within 2 s when its database is away; more is no answer


class Unreachable(Exception):
    """No usable answer; the text is one line for a person, without tokens or passwords."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer: its status, its body and how long it took."""

    status: int
    body: bytes = field(repr=False)
    milliseconds: float

    def json(self) -> Any:  # noqa: ANN401 - whatever was sent
        """Return the body as JSON; raises Unreachable."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unreachable(f"the answer (status {self.status}) is not JSON: is this a Vestibule?") from None

    def problem(self) -> str:
        """Return what a refusal says: `429 RateLimitExceeded, again in 9 s`."""
        try:
            said = json.loads(self.body)
            wait = f", again in {said['retry_after']} s" if "retry_after" in said else ""
            return f"{self.status} {said['error']}{wait}"
        except (ValueError, KeyError, TypeError):
            return str(self.status)


class Remote:
    """A service at a URL. Connects directly, whatever proxy is set, and follows no redirect: a token stays here."""

    def __init__(self, url: str, token: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            self._place = (parts.hostname or "", parts.port)
        except ValueError:
            raise Unreachable(f"{url} is no URL") from None
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise Unreachable(f"{url} is no http:// or https:// URL")
        self.url = url.rstrip("/")
        self._secure = parts.scheme == "https"
        self._prefix = parts.path.rstrip("/")
        self._token = token

    def get(self, path: str, headers: dict[str, str] | None = None, *, ops: bool = False) -> Answer:
        """Fetch a path; `ops` sends the operator's token along. Raises Unreachable."""
        return self._call("GET", path, None, {"Accept": "application/json", **self._bearer(ops), **(headers or {})})

    def post(
        self, path: str, body: dict[str, object], headers: dict[str, str] | None = None, *, ops: bool = False
    ) -> Answer:
        """Send JSON, as `get` fetches; raises Unreachable."""
        data = json.dumps(body).encode()
        return self._call(
            "POST", path, data, {"Content-Type": "application/json", **self._bearer(ops), **(headers or {})}
        )

    def said(self, answer: Answer) -> Any:  # noqa: ANN401 - whatever was sent
        """Return a good answer's JSON; raises Unreachable for every other one, with what can be done about it."""
        if answer.status == HTTPStatus.UNAUTHORIZED and self._token:
            raise Unreachable(
                f"{self.url} has another operator's token than the one given: look at VESTIBULE_OPS_TOKEN"
            )
        if answer.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            raise Unreachable(f"{self.url} wants the operator's token: set VESTIBULE_OPS_TOKEN")
        if answer.status != HTTPStatus.OK:
            raise Unreachable(f"{self.url} answers {answer.problem()}")
        return answer.json()

    def _bearer(self, ops: bool) -> dict[str, str]:  # noqa: FBT001 - passed on from a keyword
        return {"Authorization": f"Bearer {self._token}"} if ops and self._token else {}

    def _call(self, method: str, path: str, body: bytes | None, headers: dict[str, str]) -> Answer:
        connection = self._connection()
        begun = perf_counter()
        try:
            connection.request(method, self._prefix + path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, HTTPException, UnicodeError) as error:  # the last for a host or a token that is none
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise Unreachable(f"{self.url} does not answer: {reason}") from None
        finally:
            connection.close()
        return Answer(response.status, data, (perf_counter() - begun) * 1000)

    def _connection(self) -> HTTPConnection:
        host, port = self._place
        if self._secure:
            return HTTPSConnection(host, port, timeout=PATIENCE_SECONDS, context=ssl.create_default_context())
        return HTTPConnection(host, port, timeout=PATIENCE_SECONDS)


def basic(email: str, password: str) -> dict[str, str]:
    """Return the header of Basic auth."""
    return {"Authorization": "Basic " + b64encode(f"{email}:{password}".encode()).decode()}


def add_remote_options(parser: argparse.ArgumentParser) -> None:
    """Add `--url` and `--token`, which default to the environment."""
    default = os.environ.get("VESTIBULE_URL", DEFAULT_URL)
    parser.add_argument("--url", default=default, help=f"default: VESTIBULE_URL, else {DEFAULT_URL}")
    parser.add_argument("--token", help="default: VESTIBULE_OPS_TOKEN, which no list of processes shows")


def remote_of(arguments: argparse.Namespace) -> Remote:
    """Return the service that the options name; raises Unreachable."""
    return Remote(arguments.url, arguments.token or _token())


def _token() -> str | None:
    file = os.environ.get("VESTIBULE_OPS_TOKEN_FILE")
    if file:
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise Unreachable(f"VESTIBULE_OPS_TOKEN_FILE: cannot read {file}: {reason}") from None
    return os.environ.get("VESTIBULE_OPS_TOKEN")


def metrics_of(remote: Remote) -> dict[str, Any]:
    """Return the service's metrics; raises Unreachable."""
    metrics = remote.said(remote.get("/api/v1/metrics", ops=True))
    if not isinstance(metrics, dict) or "request_counts" not in metrics:
        raise Unreachable(f"{remote.url} answers without metrics: is this a Vestibule?")
    return metrics
