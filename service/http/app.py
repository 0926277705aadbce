"""The application: the route table on one screen, and what surrounds it."""

from __future__ import annotations

from importlib.metadata import version
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, cast

from quart import Quart, Response, request
from quart_trio import QuartTrio

from service.http.describing import operation_of
from service.http.edge import Edge, exchange_of, log_crash
from service.http.health import HealthCalls
from service.http.json_gate import MOST_BYTES
from service.http.ops_access import OpsAccess
from service.http.problem_answers import MEDIA, answer_to
from service.http.problems import INTERNAL_ERROR
from service.http.rate_limit_headers import rate_limit_headers
from service.http.schemas import response
from service.http.users import Users
from service.http.visits import Visits, current_visit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from actors.kit.mailbox import Address
    from actors.signup import SignUp
    from service.http.health import Health
    from service.settings import Settings


LOCALES = ("en", "de")  # what the mails are written in


class Service(Protocol):
    """What the application talks to."""

    @property
    def signup(self) -> SignUp:
        """The flows."""
        ...

    @property
    def metrics(self) -> Address:
        """Where observations are offered."""
        ...

    @property
    def health(self) -> Health:
        """What can be asked about the surroundings."""
        ...


class Route(NamedTuple):
    """One line of the table."""

    method: str
    path: str
    handler: Callable[..., Awaitable[Response]]


def table(users: Users, health: HealthCalls) -> tuple[Route, ...]:
    """Return every route there is, but for those of blueprints."""
    return (
        Route("POST", "/api/v1/users/register", users.register),
        Route("POST", "/api/v1/users/activate", users.activate),
        Route("POST", "/api/v1/users/resend", users.resend),
        Route("GET", "/api/v1/users/activation", users.activation),
        Route("GET", "/api/v1/users/activation/<token>", users.activation_of),
        Route("GET", "/api/v1/users/me", users.me),
        Route("GET", "/api/v1/health", health.report),
        Route("GET", "/livez", health.live),
        Route("GET", "/readyz", health.ready),
    )


def create_app(settings: Settings, service: Service) -> Quart:
    """Build the application for the settings' loop; it starts nothing and holds no request's state."""
    app = (QuartTrio if settings.loop == "trio" else Quart)("service.http", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, RESPONSE_TIMEOUT=None, PROPAGATE_EXCEPTIONS=False)
    app.url_map.merge_slashes = False  # a path has one spelling: no redirects
    users = Users(settings, Visits(settings, service.health.note), service.signup, LOCALES)
    health = HealthCalls(service.health, version("vestibule"))
    for route in table(users, health):
        app.add_url_rule(route.path, route.handler.__name__, route.handler, methods=[route.method])
    _surround(app, settings)
    app.after_request(users.count_refusal)  # runs before the one that shows the limits
    inside: Any = app.asgi_app
    app.asgi_app = cast("Any", Edge(inside, settings, service.metrics))  # type: ignore[method-assign]  # Quart's way
    return app


def _surround(app: Quart, settings: Settings) -> None:
    """Name the route for the edge, guard what is for operators, turn errors into problems, show the limits."""
    access = OpsAccess(settings)

    @app.before_request
    async def enter() -> None:
        rule = request.url_rule
        if rule is None:
            return
        exchange_of(request.scope).route = f"{request.method} {template(rule.rule)}"
        operation = operation_of(app.view_functions[rule.endpoint])
        if operation is not None and operation.access == "ops":
            access.check()

    @app.errorhandler(Exception)
    async def problem(error: Exception) -> Response:
        answer = answer_to(error)
        if answer.status == INTERNAL_ERROR.status:
            log_crash(error, exchange_of(request.scope).request_id)
        return response(answer.body, MEDIA, answer.status, answer.headers)

    @app.after_request
    async def show_limits(answer: Response) -> Response:
        visit = current_visit()
        if visit is not None:
            answer.headers.update(rate_limit_headers(visit.readings, time()))
        return answer


def template(rule: str) -> str:
    """Return a rule of the router as metrics and the description name it: `/activation/{token}`."""
    return rule.replace("<", "{").replace(">", "}")
