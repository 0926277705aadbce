"""Sends mails by posting them as JSON to a mail provider."""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientSession,
    ClientTimeout,
    ConnectionTimeoutError,
    TCPConnector,
)

from actors.domain.mail import Deferred, Rejected, ServerUnavailable
from service.mail.message import HEADERS
from service.mail.server import connection_reason

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from uuid import UUID

    from actors.domain.mail import ClaimedMail
    from service.mail.message import Message, Messages
    from service.mail.server import HttpProvider

CONNECT_SECONDS = 10.0
TIMEOUT = ClientTimeout(total=60, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
# The words for what a provider answers where they say more than the number.
WORDS = {401: "token refused", 403: "not permitted", 404: "no such address", 407: "proxy login refused"}
UNAVAILABLE = {401, 404, 405, 407, 502, 503, 504}  # about the token, the address or the server: the same for all mails
NOT_THIS_MAIL = UNAVAILABLE | {403, 408, 425, 429}  # never about the mail: repeat it later


class HttpTransport:
    """Posts mails to one provider; the `Idempotency-Key` lets it drop a repeat."""

    def __init__(
        self, provider: HttpProvider, messages: Messages, session: ClientSession, tls: ssl.SSLContext | None
    ) -> None:
        self._provider = provider
        self._messages = messages
        self._session = session
        self._tls = tls

    @classmethod
    @asynccontextmanager
    async def open(cls, provider: HttpProvider, messages: Messages) -> AsyncIterator[HttpTransport]:
        """Give a transport around the body; its connections are closed at the end."""
        tls = ssl.create_default_context() if provider.url.startswith("https:") else None
        connector = TCPConnector(ssl=tls or True)
        async with ClientSession(connector=connector, timeout=TIMEOUT, headers=_credentials(provider)) as session:
            yield cls(provider, messages, session, tls)

    async def check(self) -> None:
        """Connect, over TLS where mails go over it, and ask for nothing; raises ServerUnavailable."""
        url = urlsplit(self._provider.url)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                port = url.port or (443 if self._tls else 80)
                _, writer = await asyncio.open_connection(url.hostname, port, ssl=self._tls)
        except (OSError, ValueError) as error:
            raise ServerUnavailable(f"{connection_reason(error)} at the provider") from None
        writer.close()

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return when the provider has accepted the mail; raises Deferred, ServerUnavailable or Rejected."""
        await self._post(self._messages.write(mail, code))

    async def send_test(self, recipient: str, test_id: UUID) -> None:
        """Send a test mail; raises as `send` does."""
        await self._post(self._messages.test(recipient, test_id))

    async def _post(self, message: Message) -> None:
        headers = {"Idempotency-Key": message.message_id}
        try:
            # A redirect is not followed: it would carry the token and the code to where it points.
            async with self._session.post(
                self._provider.url, json=body(message), headers=headers, allow_redirects=False
            ) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After")
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            raise ServerUnavailable(f"{connection_reason(error)} at the provider") from None
        except (ClientError, OSError) as error:
            raise Deferred(f"{connection_reason(error)} at the provider") from None
        _judge(status, retry_after)


def body(message: Message) -> dict[str, object]:
    """Return what is posted."""
    return {
        "from": str(message.sender),
        "to": message.recipient,
        "subject": message.subject,
        "text": message.text,
        "html": message.html,
        "headers": {**HEADERS, "Content-Language": message.locale},
        "message_id": message.message_id,
    }


def _judge(status: int, retry_after: str | None) -> None:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return
    reason = f"HTTP {status} {WORDS.get(status, '')}".rstrip() + " at the provider"
    if status in UNAVAILABLE or 300 <= status < 400:  # noqa: PLR2004 - a redirect: the operator's URL is wrong
        raise ServerUnavailable(reason, _seconds(retry_after))
    if 400 <= status < 500 and status not in NOT_THIS_MAIL:  # noqa: PLR2004 - the class of refusal
        raise Rejected(reason)
    raise Deferred(reason, _seconds(retry_after))


def _seconds(retry_after: str | None) -> float | None:
    """Return the wait that Retry-After names, in seconds or as a date (RFC 9110, 10.2.3)."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit():
        return float(retry_after[:9])
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _credentials(provider: HttpProvider) -> dict[str, str]:
    if provider.token is None:
        return {}
    if provider.user is None:
        return {"Authorization": f"Bearer {provider.token}"}
    basic = b64encode(f"{provider.user}:{provider.token}".encode()).decode()
    return {"Authorization": f"Basic {basic}"}
