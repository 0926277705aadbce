"""Who is an operator: the token and how often it may be guessed, or a request from this very machine."""

from __future__ import annotations

import hmac
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING

from quart import request

from actors.domain.errors import RateLimited
from actors.domain.rate_limit import Rule
from actors.kit.mailbox import MachineError
from actors.limits import of_client
from actors.ports import Admit
from service.http.client import authorization, peer
from service.http.problems import OpsTokenMissing, OpsTokenRequired

if TYPE_CHECKING:
    from werkzeug.datastructures import Headers

    from actors.kit.mailbox import Address
    from service.http.client import Clients
    from service.settings import Settings

RULE = Rule("ops-token", 10, 60)  # a typist needs three; a scraper with yesterday's token asks four times a minute
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")
FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "via")


class OpsAccess:
    """Checks requests against the settings, and lets no client guess for long."""

    def __init__(self, settings: Settings, clients: Clients, limiter: Address) -> None:
        self._token = None if settings.ops_token is None else settings.ops_token.get_secret_value().encode()
        self._clients = clients
        self._limiter = limiter

    async def check(self) -> None:
        """Let the current request pass; raises OpsTokenMissing, OpsTokenRequired or RateLimited.

        A client whose window of wrong tokens is full is refused with the right one too. The token is compared before
        the limiter is asked and answered after it knows: of guesses that come all at once no more than the limit learn
        that they were wrong.
        """
        if self._token is None:
            if not from_this_machine(peer(request.scope), request.headers):
                raise OpsTokenRequired
            return
        typed = authorization("bearer", request.headers.getlist("Authorization"))
        if not typed:  # nothing is compared, so nothing was guessed
            raise OpsTokenMissing
        right = hmac.compare_digest(self._token, typed.encode(errors="replace"))
        client = self._clients.current()
        try:
            admission = await self._limiter.ask(Admit(of_client(RULE, client), count=not right))
        except MachineError:
            if right:  # both stores are away, and the operator wants to see it
                return
            raise
        if not (right and admission.admitted):
            client.readings.extend(admission.readings)
            raise OpsTokenMissing if admission.admitted else RateLimited(admission.retry_after)


def from_this_machine(client: str, headers: Headers) -> bool:
    """Whether a loopback peer asked for a loopback name without any proxy between, as far as headers show.

    A Unix socket has no peer address: it is there for a proxy, and counts as another machine.
    """
    if any(name.lower().startswith(FORWARDED) for name, _ in headers):
        return False
    hosts = headers.getlist("Host")
    match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    if match is None or not _loopback(client):
        return False
    name = match[1].strip("[]").lower().rstrip(".")
    return name == "localhost" or _loopback(name)


def _loopback(address: str) -> bool:
    try:
        found = ip_address(address)
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback
