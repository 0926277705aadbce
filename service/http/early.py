"""Refuses registrations before the framework begins with them: a crowd that is refused must cost next to nothing."""

from __future__ import annotations

from dataclasses import replace
from time import time
from typing import TYPE_CHECKING

from actors.domain.errors import Refusal
from actors.kit.mailbox import MachineError
from service.http.client import rate_limit_headers
from service.http.middleware import exchange_of, values_of
from service.http.problems import answer_to

if TYPE_CHECKING:
    from actors.signup import SignUp
    from service.http.client import Clients
    from service.http.middleware import Scope
    from service.http.problems import ProblemAnswer

REGISTER = "POST", "/api/v1/users/register"


class EarlyRefusals:
    """Knows, without asking a server, that there is no room for a hash or that the client's window is full."""

    def __init__(self, signup: SignUp, clients: Clients, root: str) -> None:
        self._signup = signup
        self._clients = clients
        self._root = root

    def answer(self, scope: Scope) -> ProblemAnswer | None:
        """Return the refusal of a registration; None for what goes on, as a repeat does that may have its answer."""
        if (scope["method"], scope["path"]) != REGISTER or values_of(scope, b"idempotency-key"):
            return None
        client = self._clients.of(scope)
        try:
            self._signup.expect_registration(client)
        except (Refusal, MachineError) as error:
            exchange_of(scope).route = " ".join(REGISTER)
            refusal = answer_to(error, self._root)
            return replace(refusal, headers={**refusal.headers, **rate_limit_headers(client.readings, time())})
        return None
