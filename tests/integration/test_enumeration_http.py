"""ENUMERATION=strict over HTTP: answers for free, pending and active addresses are the same bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest

from actors.domain.code import CodeId, Keyring
from service.http.app import create_app
from service.servers import Servers
from service.settings import Settings
from service.wiring import running
from tests.fakes.http_client import USERS, basic

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from quart.typing import TestClientProtocol

KEYS: Final = {"k1": bytes(32)}
OWNER, STRANGER, OTHER = "the owner's own", "a stranger's guess", "another stranger"
FREE, PENDING, ACTIVE = "free@example.com", "pend@example.com", "actv@example.com"  # as long as each other
CODE: Final = "SELECT id, code_id FROM users WHERE email_key = %s"
KINDS: Final = (
    "SELECT m.kind FROM mails m JOIN users u ON u.id = m.user_id WHERE u.shadow_of = %s ORDER BY m.created_at"
)
OF_THE_REQUEST: Final = {"x-request-id", "date", "retry-after", "content-length"}
# Ids, moments, the address itself, and the seconds that the calls themselves take.
OWN = re.compile(
    rb"[0-9a-f]{8}-[0-9a-f-]{27}|\d{4}-\d\d-\d\dT[0-9:.]+Z|[a-z]{4}@example\.com|\b\d{10}\b|(?<=\bt=)\d+"
    rb'|(?<=_in":)\d+|(?<="retry_after": )\d+|\d+(?= s\b)|\d+(?= seconds)'
)


@pytest.fixture
async def client(database_url: str, redis_url: str) -> AsyncIterator[TestClientProtocol]:
    """Run a strict service with a cheap hash, where one address is pending and one is active."""
    settings = Settings(loop="trio", enumeration="strict", bcrypt_cost=4, allow_weak_hash=True, workers=1)
    servers = Servers(database_url, redis_url, "smtp://127.0.0.1:9")
    async with running(settings, servers, "test", KEYS) as service:
        client = create_app(settings, service).test_client()
        for address in (PENDING, ACTIVE):
            await called(client, "192.0.2.1", "POST", "register", json={"email": address, "password": OWNER})
        with psycopg.connect(database_url) as connection:
            [(account, code_id)] = connection.execute(CODE, [ACTIVE]).fetchall()
        code = Keyring(KEYS).code(account, CodeId.parse(code_id))
        status, _, _ = await called(
            client, "192.0.2.1", "POST", "activate", headers=basic(ACTIVE, OWNER), json={"code": code}
        )
        assert status == 200
        yield client


async def called(
    client: TestClientProtocol,
    peer: str,
    method: str,
    call: str,
    **request: Any,  # noqa: ANN401 - of the client
) -> tuple[int, list[tuple[str, bytes]], bytes]:
    """Call and return status, headers and body, without what belongs to this request alone."""
    answer = await client.open(f"{USERS}/{call}", method=method, scope_base={"client": (peer, 1)}, **request)
    headers = [(name, value) for name, value in answer.headers if name.lower() not in OF_THE_REQUEST]
    return answer.status_code, [(name, OWN.sub(b"_", value.encode())) for name, value in headers], await body(answer)


async def body(answer: Any) -> bytes:  # noqa: ANN401 - the answer of either framework
    """Return the masked body."""
    return OWN.sub(b"_", await answer.get_data())


async def heard(client: TestClientProtocol, peer: str, email: str) -> list[tuple[int, list[tuple[str, bytes]], bytes]]:
    """Let a stranger do everything, twice and in a hurry, and return what is heard."""
    first, other, wrong = (basic(email, password) for password in (STRANGER, OTHER, "no such password"))
    form, second = {"email": email, "password": STRANGER}, {"email": email, "password": OTHER}
    key = {"Idempotency-Key": f"key-of-{peer}"}
    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "me", {"headers": first}),
        ("POST", "register", {"json": form, "headers": key}),
        ("POST", "register", {"json": form, "headers": key}),
        ("POST", "register", {"json": second, "headers": key}),
        ("POST", "register", {"json": form}),
        ("POST", "register", {"json": second}),
        ("GET", "me", {"headers": first}),
        ("GET", "me", {"headers": other}),
        ("GET", "me", {"headers": wrong}),
        ("GET", "activation", {"headers": first}),
        ("POST", "activate", {"headers": first, "json": {"code": "000000"}}),
        ("POST", "activate", {"headers": other, "json": {"code": "000000"}}),
        ("POST", "activate", {"headers": first, "json": {"code": "00000"}}),
        ("GET", "activation", {"headers": first}),
        ("POST", "resend", {"headers": first}),
        ("POST", "register", {"json": {"email": email, "password": "a third stranger"}}),
    ]
    return [await called(client, peer, method, call, **request) for method, call, request in calls]


async def test_no_answer_tells_a_taken_address_from_a_free_one(client: TestClientProtocol, database_url: str) -> None:
    """Status, headers and body of every call are equal, and the owner of the active address is owed one notice."""
    free = await heard(client, "192.0.2.10", FREE)
    for peer, address in (("192.0.2.11", PENDING), ("192.0.2.12", ACTIVE)):
        for answer, expected in zip(await heard(client, peer, address), free, strict=True):
            assert answer == expected
    statuses = [status for status, _, _ in free]
    assert statuses == [401, 202, 202, 409, 202, 202, 200, 200, 401, 200, 400, 400, 422, 200, 429, 429]
    with psycopg.connect(database_url) as connection:
        for address in (PENDING, ACTIVE):
            kinds = [kind for (kind,) in connection.execute(KINDS, [address]).fetchall()]
            assert kinds == ["notice", "silent"]


async def test_the_owner_goes_on_undisturbed(client: TestClientProtocol) -> None:
    """Strangers' registrations change nothing for who has proved the address."""
    await heard(client, "192.0.2.12", ACTIVE)
    status, _, body = await called(client, "192.0.2.3", "GET", "me", headers=basic(ACTIVE, OWNER))
    assert status == 200
    assert b'"is_activated":true' in body
