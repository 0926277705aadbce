from __future__ import annotations

import json
import re
import socket
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import anyio
import pytest

from actors.domain.code import CodeId
from actors.domain.mail import ClaimedMail, Deferred, MailKind, Rejected, Unreached
from service.mailer.http_api import NOT_THIS_MAIL
from service.mailer.postman import open_postman
from service.settings import Settings
from tests.servers.provider import Provider

if TYPE_CHECKING:
    from collections.abc import Iterator

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
CODE = "012345"
MAIL = ClaimedMail(
    id=UUID(int=1),
    fence=1,
    attempt=1,
    kind=MailKind.CODE,
    account=UUID(int=2),
    code_id=CodeId("k1", UUID(int=3)),
    recipient="ada@bücher.example",
    locale="de",
    life_left=900.0,
    created_at=datetime(2026, 1, 1, tzinfo=UTC),
)


@pytest.fixture
def provider() -> Iterator[Provider]:
    """Run a provider around the test."""
    with Provider() as running:
        yield running


def send(url: str, times: int = 1) -> None:
    """Send a mail as the mail worker does."""

    async def body() -> None:
        settings = Settings(mail_from="Shop <shop@example.com>")
        async with open_postman(settings, url) as postman:
            for _ in range(times):
                await postman.send(MAIL, CODE)

    anyio.run(body, backend="asyncio")


def test_a_mail_is_posted_whole_with_a_key_that_stays(provider: Provider) -> None:
    """The provider hears all of the mail, and can tell a repeat of it."""
    send(f"http://{provider.place}/v1/mail?tag=a", times=2)
    first, second = provider.posted
    assert first.path == "/v1/mail?tag=a"
    assert first.body["from"] == "Shop <shop@example.com>"
    assert first.body["to"] == "ada@xn--bcher-kva.example"
    assert first.body["subject"] == "Ihr Aktivierungscode für Shop"
    assert CODE in first.body["text"].splitlines()
    assert CODE in first.body["html"]
    assert first.body["headers"]["Auto-Submitted"] == "auto-generated"
    assert first.headers["idempotency-key"] == first.body["message_id"]
    assert (second.headers["idempotency-key"], second.body) == (first.headers["idempotency-key"], first.body)


def test_what_is_posted_is_documented(provider: Provider) -> None:
    """The operator's page shows the fields and headers that a provider gets, and names what is no refusal."""
    page = OPERATIONS.read_text(encoding="utf-8").partition("#### Mail over HTTP")[2].partition("\n### ")[0]
    shown = json.loads(page.partition("```json")[2].partition("```")[0])
    send(f"http://{provider.place}/")
    [posted] = provider.posted
    assert list(shown) == list(posted.body)
    assert list(shown["headers"]) == list(posted.body["headers"])
    assert {int(status) for status in re.findall(r"\b4\d\d\b", page)} == NOT_THIS_MAIL


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [("", None), ("t%2Fken@", "Bearer t/ken"), (":token@", "Bearer token"), ("me:token@", "Basic bWU6dG9rZW4=")],
)
def test_credentials_travel_in_a_header_only(provider: Provider, userinfo: str, sent: str | None) -> None:
    """A token alone is a Bearer token, with a user it is Basic."""
    send(f"http://{userinfo}{provider.place}/v1/mail")
    [posted] = provider.posted
    assert posted.headers.get("authorization") == sent
    assert posted.path == "/v1/mail"


@pytest.mark.parametrize("status", [400, 409, 413, 422, 451])
def test_a_refusal_of_the_mail_is_final(provider: Provider, status: int) -> None:
    """The provider will not take it however often it is asked."""
    provider.answers = [(status, {})]
    with pytest.raises(Rejected, match=f"HTTP {status} of the provider"):
        send(f"http://{provider.place}/")


@pytest.mark.parametrize("status", [302, 401, 403, 404, 408, 429, 500, 502, 503])
def test_what_time_or_an_operator_can_mend_defers(provider: Provider, status: int) -> None:
    """A wrong token or address, a redirect and an outage lose no mail; a redirect is not followed with the token."""
    provider.answers = [(status, {"Location": f"http://{provider.place}/elsewhere"})]
    with pytest.raises(Deferred, match=f"HTTP {status} of the provider"):
        send(f"http://token@{provider.place}/")
    assert len(provider.posted) == 1


@pytest.mark.parametrize("as_date", [False, True])
def test_the_wait_that_the_provider_asks_for_is_heard(provider: Provider, *, as_date: bool) -> None:
    """Retry-After in seconds or as a date."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    provider.answers = [(429, {"Retry-After": date if as_date else "120"})]
    with pytest.raises(Deferred) as caught:
        send(f"http://{provider.place}/")
    assert caught.value.retry_after == pytest.approx(120, abs=3)


def test_an_unreadable_wait_is_none(provider: Provider) -> None:
    """A provider that speaks nonsense gets the usual back-off."""
    provider.answers = [(429, {"Retry-After": "soon"})]
    with pytest.raises(Deferred) as caught:
        send(f"http://{provider.place}/")
    assert caught.value.retry_after is None


def test_a_provider_that_is_away_defers_without_telling_where_it_is() -> None:
    """The reason names the kind of error only."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(Unreached) as caught:
            send(f"http://token@127.0.0.1:{closed.getsockname()[1]}/")
    assert caught.value.reason == "ClientConnectorError at the provider"


def looked_for(url: str) -> None:
    """Look for a provider as the mail worker does."""

    async def body() -> None:
        async with open_postman(Settings(), url) as postman:
            await postman.reach()

    anyio.run(body, backend="asyncio")


def test_a_provider_is_looked_for_by_a_connection_alone(provider: Provider) -> None:
    """It is there or not; over TLS it is there once it can be trusted, as mails need it to be."""
    looked_for(f"http://{provider.place}/")
    assert provider.posted == []
    for url in (f"https://{provider.place}/", "http://127.0.0.1:1/"):
        with pytest.raises(Unreached):
            looked_for(url)
