from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from actors.domain.mail import Deferred, Rejected, ServerUnavailable
from service.mail.http_api import NOT_THIS_MAIL
from tests.fakes.mails import claimed
from tests.integration.conftest import with_transport
from tests.servers.ports import free_ports

if TYPE_CHECKING:
    from service.mail.transport import MailTransport
    from tests.servers.provider import Provider

OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
CODE = "012345"
MAIL = claimed(recipient="ada@bücher.example", locale="de")


def send(url: str, times: int = 1) -> None:
    """Send a mail as the mail worker does."""

    async def body(transport: MailTransport) -> None:
        for _ in range(times):
            await transport.send(MAIL, CODE)

    with_transport(url, body)


def test_a_mail_is_posted_whole_with_a_key_that_stays(mail_provider: Provider) -> None:
    """The provider gets all of the mail, and can tell a repeat of it."""
    send(f"http://{mail_provider.place}/v1/mail?tag=a", times=2)
    first, second = mail_provider.posted
    assert first.path == "/v1/mail?tag=a"
    assert first.body["from"] == "Shop <shop@example.com>"
    assert first.body["to"] == "ada@xn--bcher-kva.example"
    assert first.body["subject"] == "Ihr Aktivierungscode für Shop"
    assert CODE in first.body["text"].splitlines()
    assert CODE in first.body["html"]
    assert first.body["headers"]["Auto-Submitted"] == "auto-generated"
    assert first.headers["idempotency-key"] == first.body["message_id"]
    assert (second.headers["idempotency-key"], second.body) == (first.headers["idempotency-key"], first.body)


def test_what_is_posted_is_documented(mail_provider: Provider) -> None:
    """The operator's page shows the fields and headers that a provider gets, and names what is no refusal."""
    page = OPERATIONS.read_text(encoding="utf-8").partition("#### Mail over HTTP")[2].partition("\n### ")[0]
    shown = json.loads(page.partition("```json")[2].partition("```")[0])
    send(f"http://{mail_provider.place}/")
    [posted] = mail_provider.posted
    assert list(shown) == list(posted.body)
    assert list(shown["headers"]) == list(posted.body["headers"])
    assert {int(status) for status in re.findall(r"\b4\d\d\b", page)} == {one for one in NOT_THIS_MAIL if one < 500}


@pytest.mark.parametrize(
    ("userinfo", "sent"),
    [("", None), ("t%2Fken@", "Bearer t/ken"), (":token@", "Bearer token"), ("me:token@", "Basic bWU6dG9rZW4=")],
)
def test_credentials_travel_in_a_header_only(mail_provider: Provider, userinfo: str, sent: str | None) -> None:
    """A token alone is a Bearer token, with a user it is Basic."""
    send(f"http://{userinfo}{mail_provider.place}/v1/mail")
    [posted] = mail_provider.posted
    assert posted.headers.get("authorization") == sent
    assert posted.path == "/v1/mail"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, Rejected) for status in (400, 409, 413, 422, 451)),
        *((status, Deferred) for status in (403, 408, 425, 429, 500)),
        *((status, ServerUnavailable) for status in (302, 401, 404, 405, 407, 502, 503, 504)),
    ],
)
def test_only_a_refusal_of_the_mail_is_final(mail_provider: Provider, status: int, kind: type[Exception]) -> None:
    """A wrong token or URL, a redirect and an outage lose no mail; a redirect is not followed with the token."""
    mail_provider.answers = [(status, {"Location": f"http://{mail_provider.place}/elsewhere"})]
    with pytest.raises((Rejected, Deferred), match=rf"^HTTP {status}\b.* at the provider$") as caught:
        send(f"http://token@{mail_provider.place}/")
    assert caught.type is kind
    assert len(mail_provider.posted) == 1


@pytest.mark.parametrize("asked", ["120", "a date", "soon", None])
def test_the_wait_that_the_provider_asks_for_is_read(mail_provider: Provider, asked: str | None) -> None:
    """Retry-After in seconds or as a date; without a readable one the mail waits for its usual back-off."""
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=120), usegmt=True)
    mail_provider.answers = [(429, {"Retry-After": date if asked == "a date" else asked} if asked else {})]
    with pytest.raises(Deferred) as caught:
        send(f"http://{mail_provider.place}/")
    known = asked in {"120", "a date"}
    assert caught.value.retry_after == (pytest.approx(120, abs=3) if known else None)


def test_a_provider_that_is_away_is_unavailable_and_the_reason_does_not_say_where(mail_provider: Provider) -> None:
    """Over TLS it is there only when it can be trusted; checking and sending agree."""
    away = {
        f"http://token@127.0.0.1:{free_ports()}/": "connection refused at the provider",
        "http://nowhere.invalid/": "host name not found at the provider",
        f"https://{mail_provider.place}/": "TLS handshake failed at the provider",
    }
    for url, words in away.items():
        for ask in (lambda transport: transport.check(), lambda transport: transport.send(MAIL, CODE)):
            with pytest.raises(ServerUnavailable) as caught:
                with_transport(url, ask)
            assert caught.value.reason == words
    assert mail_provider.posted == []


def test_a_check_posts_nothing_and_a_test_mail_is_posted_like_any_other(mail_provider: Provider) -> None:
    """The provider is there or not; a mail says whether it takes our token."""

    async def body(transport: MailTransport) -> None:
        await transport.check()
        assert mail_provider.posted == []
        await transport.send_test("ops@example.org", UUID(int=9))

    with_transport(f"http://{mail_provider.place}/", body)
    [posted] = mail_provider.posted
    assert (posted.body["to"], posted.body["html"]) == ("ops@example.org", None)
