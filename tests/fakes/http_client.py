"""A client of the application, as tests want one: what it sends, and what a problem must look like."""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Any

from tests.fakes.http_service import EMAIL, PASSWORD

if TYPE_CHECKING:
    from quart import Response
    from quart.typing import TestClientProtocol

USERS = "/api/v1/users"
CHALLENGE = 'Basic realm="vestibule", charset="UTF-8"'


def basic(email: str = EMAIL, password: str = PASSWORD) -> dict[str, str]:
    """Return the header that carries the credentials."""
    return {"Authorization": "Basic " + b64encode(f"{email}:{password}".encode()).decode()}


async def register(client: TestClientProtocol, headers: dict[str, str] | None = None, **fields: object) -> Response:
    """Register with whatever differs from the usual."""
    body = {"email": EMAIL, "password": PASSWORD, **fields}
    return await client.post(f"{USERS}/register", json=body, headers=headers or {})


async def problem(answer: Response, status: int, code: str) -> dict[str, Any]:
    """Hold an answer to RFC 9457 and return its body."""
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = await answer.get_json(force=True)
    assert body["status"] == status
    assert body["error"] == code
    assert body["type"].startswith("/problems/")
    assert {"title", "detail"} <= body.keys()
    return body
