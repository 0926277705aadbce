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

from actors.domain.mail import Deferred, Rejected, Unreached
from service.mailer.envelope import HEADERS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from actors.domain.mail import ClaimedMail
    from service.mailer.envelope import Envelope, Envelopes
    from service.mailer.mail_url import HttpProvider

CONNECTIONS = 8
CONNECT_SECONDS = 10.0
TIMEOUT = ClientTimeout(total=60, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS)
NOT_THIS_MAIL = {401, 403, 404, 405, 407, 408, 425, 429}  # about the token, the address or the moment: repeat later


class HttpPostman:
    """Hands mails to one HTTP provider; the `Idempotency-Key` lets it drop a repeat."""

    def __init__(
        self, provider: HttpProvider, envelopes: Envelopes, session: ClientSession, tls: ssl.SSLContext | None
    ) -> None:
        self._provider = provider
        self._envelopes = envelopes
        self._session = session
        self._tls = tls

    @classmethod
    @asynccontextmanager
    async def open(cls, provider: HttpProvider, envelopes: Envelopes) -> AsyncIterator[HttpPostman]:
        """Give a postman around the body; its connections are closed at the end."""
        tls = ssl.create_default_context() if provider.url.startswith("https:") else None
        connector = TCPConnector(limit=CONNECTIONS, ssl=tls or True)
        async with ClientSession(connector=connector, timeout=TIMEOUT, headers=_credentials(provider)) as session:
            yield cls(provider, envelopes, session, tls)

    async def reach(self) -> None:
        """Connect, over TLS where mails go over it, and ask for nothing; raises Unreached."""
        url = urlsplit(self._provider.url)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                port = url.port or (443 if self._tls else 80)
                _, writer = await asyncio.open_connection(url.hostname, port, ssl=self._tls)
        except (OSError, ValueError) as error:
            raise Unreached(f"{type(error).__name__} at the provider") from None
        writer.close()

    async def send(self, mail: ClaimedMail, code: str | None) -> None:
        """Return once the provider has accepted the mail; raises Deferred or Rejected."""
        envelope = self._envelopes.fill(mail, code)
        headers = {"Idempotency-Key": envelope.message_id}
        try:
            # A redirect is not followed: it would carry the token and the code to wherever it points.
            async with self._session.post(
                self._provider.url, json=body(envelope), headers=headers, allow_redirects=False
            ) as answer:
                status, retry_after = answer.status, answer.headers.get("Retry-After")
        except (ClientConnectorError, ConnectionTimeoutError) as error:
            raise Unreached(f"{type(error).__name__} at the provider") from None
        except (ClientError, OSError) as error:
            raise Deferred(f"{type(error).__name__} at the provider") from None
        _judge(status, retry_after)


def body(envelope: Envelope) -> dict[str, object]:
    """Return what is posted."""
    written = envelope.written
    return {
        "from": str(envelope.sender),
        "to": envelope.recipient,
        "subject": written.subject,
        "text": written.text,
        "html": written.html,
        "headers": {**HEADERS, "Content-Language": written.locale},
        "message_id": envelope.message_id,
    }


def _judge(status: int, retry_after: str | None) -> None:
    if 200 <= status < 300:  # noqa: PLR2004 - the class of success
        return
    if 400 <= status < 500 and status not in NOT_THIS_MAIL:  # noqa: PLR2004 - the class of refusal
        raise Rejected(f"HTTP {status} of the provider")
    raise Deferred(f"HTTP {status} of the provider", _seconds(retry_after))


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
