"""The calls on accounts: register, activate, resend, activation and me. Each asks one flow and shows its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quart import Response, request

from actors.domain import errors
from actors.forms import Form
from actors.idempotency import KEY
from actors.kit.mailbox import MachineError
from service.http.describing import Operation, RequestHeader, describes
from service.http.json_gate import read, read_nothing
from service.http.locales import choose
from service.http.problem_answers import MEDIA, answer_to
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
    response,
)
from service.http.visits import credentials, current_visit, idempotency_key

if TYPE_CHECKING:
    from collections.abc import Sequence

    from actors.signup import SignUp
    from service.http.visits import Visits
    from service.settings import Settings

REFUSALS_COUNTED = frozenset({400, 413, 415, 422, 429})  # what a client can send without end and at no cost
IDEMPOTENCY_KEY = RequestHeader(
    "Idempotency-Key",
    "1 to 64 visible ASCII characters: repeats with it are answered as the first.",
    f"^{KEY.pattern}$",
)


class Users:
    """The handlers, around the flows they ask."""

    def __init__(self, settings: Settings, visits: Visits, signup: SignUp, locales: Sequence[str]) -> None:
        self._settings = settings
        self._visits = visits
        self._signup = signup
        self._locales = locales

    @describes(
        Operation(
            "Create an account; the code travels by e-mail.",
            {201: RegisteredView, 202: AcceptedView},
            body=RegisterRequest,
            problems=(
                errors.EmailTaken,
                errors.IdempotencyKeyReused,
                errors.RequestInProgress,
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
        visit = self._visits.begin()
        await self._signup.welcome(visit)
        body = await read(RegisterRequest)
        locale = choose(body.locale, request.headers.get("Accept-Language", ""), self._locales)
        form = Form(body.email, body.password.get_secret_value(), locale, idempotency_key())
        registration = await self._signup.register(visit, form)
        if self._settings.enumeration == "strict":
            return AcceptedView(email=registration.email).response(202)
        view = RegisteredView.of(registration)
        return view.response(201, {"Location": view.status_url})

    @describes(
        Operation(
            "Activate the account with the code.",
            {200: ActivatedView},
            body=ActivateRequest,
            access="basic",
            problems=(
                errors.WrongCode,
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
        visit = self._visits.begin()
        who = credentials()
        code = (await read(ActivateRequest)).digits(self._settings.code_digits)
        return ActivatedView.of(await self._signup.activate(visit, who, code)).response()

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
        visit = self._visits.begin()
        who = credentials()
        await read_nothing(NothingRequest)
        return ResendView.of(await self._signup.resend(visit, who)).response(202)

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
        visit = self._visits.begin()
        return ProgressView.of(await self._signup.progress(visit, credentials())).response()

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
        visit = self._visits.begin()
        return ProfileView.of(await self._signup.profile(visit, credentials())).response()

    async def count_refusal(self, answer: Response) -> Response:
        """Count a refused registration against its client; of many at once, those beyond the limit hear that instead.

        A count that gets lost changes no answer, and no 429 becomes another one.
        """
        visit = current_visit()
        refused = request.endpoint == self.register.__name__ and answer.status_code in REFUSALS_COUNTED
        if refused and visit is not None:
            try:
                await self._signup.refused(visit)
            except errors.RateLimited as full:
                told = answer_to(full)
                if told.status != answer.status_code:
                    return response(told.body, MEDIA, told.status, told.headers)
            except MachineError:
                return answer
        return answer
