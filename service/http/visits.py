"""What the handlers take from a request beside its body: the client, the trace, the key, the credentials."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loguru import logger
from quart import g, request

from actors.domain.errors import IdempotencyKeyInvalid
from actors.forms import Visit
from service.http import basic_auth
from service.http.client_address import client_address
from service.http.edge import exchange_of

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from actors.forms import Credentials
    from service.settings import Settings

FORWARDED_UNTRUSTED = "forwarded_untrusted"  # its name among the counters of the process
UNTRUSTED = "Forwarded headers from a peer outside TRUSTED_PROXIES are ignored. If it is your proxy, list its network."


class Visits:
    """Begins the visits of a process; tells the operator once when a stranger sends forwarded headers, and counts.

    They mean a proxy that is not in TRUSTED_PROXIES, behind which all clients share one limit, or a forger.
    """

    def __init__(self, settings: Settings, note: Callable[[str], None], noticed: Counter[str]) -> None:
        self._trusted = settings.trusted_proxies
        self._note = note
        self._noticed = noticed

    def begin(self) -> Visit:
        """Return the visit of the current request, whose readings become headers of its answer."""
        client = client_address(peer(), request.headers, self._trusted)
        if client.untrusted_forwarding:
            self._tell()
        exchange = exchange_of(request.scope)
        visit = Visit(client.networks, exchange.traceparent, place=exchange.place)
        g.visit = visit
        return visit

    def _tell(self) -> None:
        if not self._noticed[FORWARDED_UNTRUSTED]:
            logger.warning("forwarded headers from a peer that is no trusted proxy")
            self._note(UNTRUSTED)
        self._noticed[FORWARDED_UNTRUSTED] += 1


def current_visit() -> Visit | None:
    """Return the visit that this request began, if it began one."""
    visit: Visit | None = g.get("visit")
    return visit


def peer() -> str:
    """Return the address at the other end of the connection; empty on a Unix socket.

    From the scope: a header named Remote-Addr is anybody's.
    """
    client = request.scope.get("client")
    return str(client[0]) if client and client[0] else ""


def credentials() -> Credentials:
    """Return what Basic auth carries; raises InvalidCredentials."""
    return basic_auth.credentials(request.headers.getlist("Authorization"))


def idempotency_key() -> str | None:
    """Return the request's key, for the flows to judge; raises IdempotencyKeyInvalid for two of them."""
    keys = request.headers.getlist("Idempotency-Key")
    if len(keys) > 1:
        raise IdempotencyKeyInvalid
    return keys[0] if keys else None
