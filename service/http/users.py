"""The calls on accounts: register, activate, resend, activation and me. Each asks one flow and shows its answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from quart import Response, request

from actors.domain import errors
from actors.signup import KEY, Form
from service.http.client import choose, credentials, idempotency_key
from service.http.json_body import read, read_nothing
from service.http.openapi import describes
from service.http.schemas import (
    AcceptedView,
    ActivatedView,
    ActivateRequest,
    ProfileView,
    ProgressView,
    RegisteredView,
    RegisterRequest,
    ResendView,
    StateView,
)

if TYPE_CHECKING:
    from service.http.app import Parts
    from service.http.client import Clients

IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "1 to 64 visible ASCII characters: repeats with it are answered as the first.",
    "schema": {"type": "string", "pattern": f"^{KEY.pattern}$"},
}


class Users:
    """The handlers, around the flows they ask."""

    def __init__(self, parts: Parts, clients: Clients) -> None:
        self._settings = parts.settings
        self._signup = parts.signup
        self._run = parts.background.run  # a flow that was begun ends, although its client leaves
        self._locales = parts.locales
        self._clients = clients

    @describes(
        {201: RegisteredView, 202: AcceptedView},
        body=RegisterRequest,
        problems=(
            errors.EmailTaken,
            errors.IdempotencyKeyReused,
            errors.InvalidEmail,
            errors.WeakPassword,
            errors.CodesExhausted,
        ),
        parameters=(IDEMPOTENCY_KEY,),
        limited=True,
    )
    async def register(self) -> Response:
        """Create an account; the code travels by e-mail."""
        client = self._clients.current()
        body = await read(RegisterRequest)
        locale = choose(body.locale, request.headers.get("Accept-Language", ""), self._locales)
        form = Form(body.email, body.password.get_secret_value(), locale, idempotency_key())
        registration = await self._run(partial(self._signup.register, client, form))
        if registration is None:
            return AcceptedView(email=form.email).response(202)
        view = RegisteredView.under(self._settings.root, registration)
        return view.response(201, {"Location": view.status_url})

    @describes(
        {200: ActivatedView},
        body=ActivateRequest,
        access="basic",
        problems=(
            errors.WrongCode,
            errors.ActivationFailed,
            errors.InvalidCredentials,
            errors.AlreadyActivated,
            errors.CodeExpired,
            errors.CodeAttemptsExhausted,
        ),
        limited=True,
    )
    async def activate(self) -> Response:
        """Activate the account with the code."""
        client, sent = self._clients.current(), credentials()
        code = (await read(ActivateRequest)).digits(self._settings.code_digits)
        activation = await self._run(partial(self._signup.activate, client, sent, code))
        return ActivatedView.of(activation).response()

    @describes(
        {202: ResendView},
        access="basic",
        problems=(errors.InvalidCredentials, errors.AlreadyActivated, errors.ResendTooSoon, errors.CodesExhausted),
        limited=True,
    )
    async def resend(self) -> Response:
        """Send a new code."""
        client, sent = self._clients.current(), credentials()
        await read_nothing()
        resend = await self._run(partial(self._signup.resend, client, sent))
        return AcceptedView(email=sent.email).response(202) if resend is None else ResendView.of(resend).response(202)

    @describes({200: ProgressView}, access="basic", problems=(errors.InvalidCredentials,), limited=True)
    async def activation(self) -> Response:
        """Say where the caller's registration stands."""
        return ProgressView.of(await self._signup.progress(self._clients.current(), credentials())).response()

    @describes({200: StateView}, problems=(errors.UnknownStatus,))
    async def activation_of(self, token: str) -> Response:
        """Say where a registration stands."""
        return StateView.of(await self._signup.progress_of(token)).response()

    @describes({200: ProfileView}, access="basic", problems=(errors.InvalidCredentials,), limited=True)
    async def me(self) -> Response:
        """Return the caller's account."""
        return ProfileView.of(await self._signup.profile(self._clients.current(), credentials())).response()
