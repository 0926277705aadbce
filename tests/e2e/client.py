"""Speaks HTTP to an instance from an address of its own, and holds every answer to what all answers promise."""

from __future__ import annotations

import http.client
import json
import re
import socket
from base64 import b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.e2e.instance import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tests.e2e.instance import Instance

TIMEOUT = 20.0
USERS = "/api/v1/users"
PROBLEM = {"type", "title", "status", "detail", "error"}
SENTENCE = re.compile(r"[A-Z].+\.")
RANDOM_LENGTH = 12  # a secret that short may stand in any text by chance


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer as it came."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    def header(self, name: str) -> str | None:
        """Return the header, which must not be there twice."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) < 2, f"{name} is there {len(values)} times"
        return values[0] if values else None

    def json(self) -> dict[str, Any]:
        """Return the body as an object."""
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> str | None:
        """The problem's code, None for a success."""
        return str(self.json()["error"]) if self.header("Content-Type") == "application/problem+json" else None

    @property
    def outcome(self) -> str:
        """The status, and the problem's code if it is one: `409 UserAlreadyExists`."""
        return f"{self.status} {self.error}" if self.error else str(self.status)


def basic(email: str, password: str) -> str:
    """Return an Authorization header's value."""
    return "Basic " + b64encode(f"{email}:{password}".encode()).decode()


@dataclass
class Client:
    """One client machine; a connection for each request, so that they spread over the workers."""

    instance: Instance
    address: str = HOST

    def connect(self) -> http.client.HTTPConnection:
        """Return a connection from this client's address."""
        source = (self.address, 0)
        return http.client.HTTPConnection(HOST, self.instance.port, timeout=TIMEOUT, source_address=source)

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: Iterable[tuple[str, str | bytes]] = ()
    ) -> Answer:
        """Send a request and return its answer."""
        connection = self.connect()
        try:
            return self.exchange(connection, method, path, body, headers)
        finally:
            connection.close()

    def exchange(
        self,
        connection: http.client.HTTPConnection,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Iterable[tuple[str, str | bytes]] = (),
    ) -> Answer:
        """Send a request over a connection that is there already."""
        named = list(headers)
        self._note(named)
        has_host = any(name.lower() == "host" for name, _ in named)
        connection.putrequest(method, path, skip_host=has_host, skip_accept_encoding=True)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        for name, value in named:
            connection.putheader(name, value)
        connection.endheaders(body)
        return self._received(connection.getresponse())

    def raw(self, request: bytes) -> Answer:
        """Send bytes that no HTTP client would send."""
        with socket.create_connection((HOST, self.instance.port), TIMEOUT, (self.address, 0)) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return self._received(response)

    def post(self, path: str, body: Mapping[str, object] | bytes, **headers: str) -> Answer:
        """Send JSON; a header's name is written with underscores."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        named = [("Content-Type", "application/json"), *((k.replace("_", "-"), v) for k, v in headers.items())]
        return self.send("POST", path, content, named)

    def register(self, email: str, password: str, *, locale: str | None = None, **headers: str) -> Answer:
        """Send the form."""
        self.instance.ledger.addresses.add(email)
        if len(password) >= RANDOM_LENGTH:
            self.instance.ledger.passwords.add(password)
        form = {"email": email, "password": password} | ({"locale": locale} if locale else {})
        return self.post(f"{USERS}/register", form, **headers)

    def activate(self, email: str, password: str, code: object) -> Answer:
        """Redeem a code."""
        return self.post(f"{USERS}/activate", {"activation_code": code}, Authorization=basic(email, password))

    def resend(self, email: str, password: str) -> Answer:
        """Ask for another code."""
        return self.send("POST", f"{USERS}/resend", b"", [("Authorization", basic(email, password))])

    def get(self, path: str, **headers: str) -> Answer:
        """Read something."""
        return self.send("GET", path, headers=[(name.replace("_", "-"), value) for name, value in headers.items()])

    def me(self, email: str, password: str) -> Answer:
        """Read the account."""
        return self.get(f"{USERS}/me", Authorization=basic(email, password))

    def activation(self, email: str, password: str) -> Answer:
        """Read where the registration stands."""
        return self.get(f"{USERS}/activation", Authorization=basic(email, password))

    def _note(self, headers: Iterable[tuple[str, str | bytes]]) -> None:
        for name, value in headers:
            text = value if isinstance(value, str) else value.decode("latin-1")
            _, _, credentials = text.partition(" ")
            if name.lower() == "authorization" and len(credentials) >= RANDOM_LENGTH:
                self.instance.ledger.authorizations.add(credentials)

    def _received(self, response: http.client.HTTPResponse) -> Answer:
        answer = Answer(response.status, tuple(response.getheaders()), response.read())
        assert answer.status != 500, answer.body
        assert answer.header("X-Request-ID")
        assert answer.header("X-Content-Type-Options") == "nosniff"
        assert answer.header("Content-Security-Policy")
        assert answer.header("Server") is None
        if answer.status >= 400 and answer.body:
            self._check_problem(answer)
        assert b"$2b$" not in answer.body
        return answer

    def _check_problem(self, answer: Answer) -> None:
        assert answer.header("Content-Type") == "application/problem+json", answer
        problem = answer.json()
        assert problem.keys() >= PROBLEM
        assert problem["status"] == answer.status
        assert problem["type"].startswith("/problems/")
        assert SENTENCE.fullmatch(problem["detail"])
        assert list(self.instance.ledger.secrets_in("the answer", answer.body)) == []
        assert list(self.instance.ledger.addresses_in("the answer", answer.body)) == []
        if answer.status in {429, 503}:
            assert int(answer.header("Retry-After") or 0) == problem["retry_after"] > 0
        assert (answer.status == 405) == (answer.header("Allow") is not None)
        assert (answer.status == 401) == (answer.header("WWW-Authenticate") is not None)
