"""The calls on accounts: register, activate, resend, activation and me. Each asks one flow and shows its answer."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from quart import Response, request

from actors.domain import errors
from actors.signup import KEY, Form
from service.http.client import choose, credentials, idempotency_key
from service.http.json_body import read, read_nothing
from service.http.routes import Operation, RequestHeader, describes
from service.http.schemas import (
    AcceptedView,
    ActivatedView,
    ActivateRequest,
    NothingRequest,
    ProfileView,
    ProgressView,
    RegisteredView,
    RegisterRequest,
    ResendView,
    StateView,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.kit.background import BackgroundTasks
    from actors.signup import SignUp
    from service.http.client import Clients
    from service.settings import Settings

IDEMPOTENCY_KEY = RequestHeader(
    "Idempotency-Key",
    "1 to 64 visible ASCII characters: repeats with it are answered as the first.",
    f"^{KEY.pattern}$",
)


class Users:
    """The handlers, around the flows they ask."""

    def __init__(
        self,
        settings: Settings,
        clients: Clients,
        signup: SignUp,
        background: BackgroundTasks,
        locales: Sequence[str],
    ) -> None:
        self._settings = settings
        self._clients = clients
        self._signup = signup
        self._background = background
        self._locales = locales

    @describes(
        Operation(
            "Create an account; the code travels by e-mail.",
            {201: RegisteredView, 202: AcceptedView},
            body=RegisterRequest,
            problems=(
                errors.EmailTaken,
                errors.IdempotencyKeyReused,
                errors.InvalidEmail,
                errors.WeakPassword,
                errors.CodesExhausted,
            ),
            request_headers=(IDEMPOTENCY_KEY,),
            limited=True,
        )
    )
    async def register(self) -> Response:
        """Accept a registration."""
        client = self._clients.current()
        body = await read(RegisterRequest)
        locale = choose(body.locale, request.headers.get("Accept-Language", ""), self._locales)
        form = Form(body.email, body.password.get_secret_value(), locale, idempotency_key())
        registration = await self._background.run(partial(self._signup.register, client, form))
        if registration is None:
            return AcceptedView(email=form.email).response(202)
        view = RegisteredView.of(registration, self._settings.root)
        return view.response(201, {"Location": view.status_url})

    @describes(
        Operation(
            "Activate the account with the code.",
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
    )
    async def activate(self) -> Response:
        """Redeem a code."""
        client, sent = self._clients.current(), credentials()
        code = (await read(ActivateRequest)).digits(self._settings.code_digits)
        activation = await self._background.run(partial(self._signup.activate, client, sent, code))
        return ActivatedView.of(activation).response()

    @describes(
        Operation(
            "Send a new code.",
            {202: ResendView},
            access="basic",
            problems=(
                errors.InvalidCredentials,
                errors.AlreadyActivated,
                errors.ResendTooSoon,
                errors.CodesExhausted,
            ),
            limited=True,
        )
    )
    async def resend(self) -> Response:
        """Issue a new code."""
        client, sent = self._clients.current(), credentials()
        await read_nothing(NothingRequest)
        resend = await self._background.run(partial(self._signup.resend, client, sent))
        if resend is None:
            return AcceptedView(email=sent.email).response(202)
        return ResendView.of(resend).response(202)

    @describes(
        Operation(
            "Say where the caller's registration stands.",
            {200: ProgressView},
            access="basic",
            problems=(errors.InvalidCredentials,),
            limited=True,
        )
    )
    async def activation(self) -> Response:
        """Show the caller's registration."""
        return ProgressView.of(await self._signup.progress(self._clients.current(), credentials())).response()

    @describes(Operation("Say where a registration stands.", {200: StateView}, problems=(errors.UnknownStatus,)))
    async def activation_of(self, token: str) -> Response:
        """Show the registration of a status address."""
        return StateView.of(await self._signup.progress_of(token)).response()

    @describes(
        Operation(
            "Return the caller's account.",
            {200: ProfileView},
            access="basic",
            problems=(errors.InvalidCredentials,),
            limited=True,
        )
    )
    async def me(self) -> Response:
        """Show the caller's account."""
        return ProfileView.of(await self._signup.profile(self._clients.current(), credentials())).response()
