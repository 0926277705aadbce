from __future__ import annotations

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from tests.fakes.asgi import JSON, Answer, call
from tests.fakes.http_service import FakeService, ScriptedMail

MAIL = ScriptedMail(UUID(int=1))
PATH = "/api/v1/ops/mails"


async def asked(service: FakeService, method: str, path: str, query: bytes = b"", /, **fields: object) -> Answer:
    """Ask as an operator on this machine."""
    app = service.app(loop="trio")
    body = json.dumps(fields).encode() if method == "POST" else b""
    return await call(app, method, path, [JSON], body, query_string=query)


async def test_the_queue_is_listed_as_it_was_asked_for() -> None:
    """State, time and number narrow the list; a mail is shown without a code."""
    service = FakeService()
    service.mail_admin.owed = [MAIL, ScriptedMail(UUID(int=2), state="queued")]
    answer = await asked(service, "GET", PATH, b"state=dead&since=2026-01-31T12:00:00Z&limit=7")
    assert answer.status == 200
    assert [mail["id"] for mail in json.loads(answer.body)["mails"]] == [str(MAIL.id)]
    assert service.mail_admin.asked == [("dead", datetime(2026, 1, 31, 12, tzinfo=UTC), 7)]


@pytest.mark.parametrize(
    "query",
    [
        b"state=lost",
        b"since=yesterday",
        b"limit=0",
        b"limit=9999",
        b"limit=x",
        b"since=999999d",
        b"limit=" + b"9" * 5000,
    ],
)
async def test_a_query_that_means_nothing_is_a_clear_problem(query: bytes) -> None:
    """It names the field, and asks the desk nothing."""
    service = FakeService()
    answer = await asked(service, "GET", PATH, query)
    assert (answer.status, answer.code) == (422, "ValidationError")
    assert json.loads(answer.body)["errors"][0]["field"] == query.split(b"=")[0].decode()
    assert service.mail_admin.asked == []


async def test_one_mail_is_shown_and_another_is_not_there() -> None:
    """An unknown id, and what is no id, are 404."""
    service = FakeService()
    service.mail_admin.owed = [MAIL]
    found = await asked(service, "GET", f"{PATH}/{MAIL.id}")
    assert json.loads(found.body)["reason"] == MAIL.reason
    assert (await asked(service, "GET", f"{PATH}/{UUID(int=9)}")).status == 404
    assert (await asked(service, "GET", f"{PATH}/nonsense")).status == 404


async def test_named_mails_and_dead_ones_are_replayed() -> None:
    """By id, or all dead ones since a time, or only said which."""
    service = FakeService()
    service.mail_admin.owed = [MAIL]
    named = await asked(service, "POST", f"{PATH}/replay", ids=[str(UUID(int=5))])
    assert json.loads(named.body) == {"dry_run": False, "replayed": [str(UUID(int=5))]}
    await asked(service, "POST", f"{PATH}/replay", dead=True, since="2h", dry_run=True)
    assert service.mail_admin.replayed == [([UUID(int=5)], False), ([MAIL.id], True)]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"ids": [], "dead": True},
        {"ids": ["x"]},
        {"dead": True, "since": "soon"},
        {"dead": True, "since": "999999d"},
    ],
)
async def test_a_replay_that_means_nothing_is_a_clear_problem(fields: dict[str, object]) -> None:
    """Neither or both of ids and dead, what is no id, what is no time."""
    service = FakeService()
    answer = await asked(service, "POST", f"{PATH}/replay", **fields)
    assert (answer.status, answer.code) == (422, "ValidationError")
    assert service.mail_admin.replayed == []


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("GET", f"{PATH}/{MAIL.id}"), ("POST", f"{PATH}/replay")])
async def test_strangers_see_and_do_nothing(method: str, path: str) -> None:
    """The queue holds addresses: it is for operators."""
    app = FakeService().app(loop="trio")
    answer = await call(app, method, path, [JSON], b"{}", client=("192.0.2.7", 5))
    assert (answer.status, answer.code) == (403, "OpsTokenRequired")
