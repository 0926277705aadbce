"""The application: the route table on one screen, and what surrounds it."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from time import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from quart import Quart, Response, request
from quart_trio import QuartTrio

from service.http.describing import operation_of
from service.http.dev_mail import DevMail, has_catcher
from service.http.edge import Edge, exchange_of, log_crash
from service.http.health import HealthCalls
from service.http.json_gate import MOST_BYTES, bounded
from service.http.metrics import MetricsCalls
from service.http.openapi import document
from service.http.ops_access import OpsAccess
from service.http.ops_mails import OpsMails
from service.http.ops_page import OpsPages
from service.http.pages import Pages
from service.http.problem_answers import MEDIA, answer_to
from service.http.problems import INTERNAL_ERROR
from service.http.rate_limit_headers import rate_limit_headers
from service.http.rendering import StaticFiles
from service.http.routes import Route, template
from service.http.schemas import response
from service.http.turnstile import REGISTER, Turnstile
from service.http.users import Users
from service.http.visits import Visits, current_visit
from service.mailer.locales import available_locales

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from actors.kit.mailbox import Address
    from actors.metrics_ports import MetricsReader
    from actors.signup import SignUp
    from service.http.health import Health
    from service.http.ops_mails import MailDesk
    from service.settings import Settings


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
    def limiter(self) -> Address:
        """The RateLimiter."""
        ...

    @property
    def noticed(self) -> Counter[str]:
        """What this process counts for the metrics beside the actors, by name."""
        ...

    @property
    def reader(self) -> MetricsReader:
        """Where the metrics of all workers are read."""
        ...

    @property
    def desk(self) -> MailDesk:
        """The operator's hand on the mail queue."""
        ...

    @property
    def health(self) -> Health:
        """What can be asked about the surroundings."""
        ...


def table(settings: Settings, service: Service, access: OpsAccess, users: Users) -> tuple[Route, ...]:
    """Return every route there is."""
    release = version("vestibule")
    health = HealthCalls(service.health, release)
    metrics = MetricsCalls(service.reader)
    pages = Pages(settings, release, cache(lambda: document(routes, release, settings.code_digits)))
    ops = OpsPages(settings, service.reader, service.health, access, release)
    mails = OpsMails(service.desk)
    routes = (
        Route(*REGISTER, users.register),
        Route("POST", "/api/v1/users/activate", users.activate),
        Route("POST", "/api/v1/users/resend", users.resend),
        Route("GET", "/api/v1/users/activation", users.activation),
        Route("GET", "/api/v1/users/activation/<token>", users.activation_of),
        Route("GET", "/api/v1/users/me", users.me),
        Route("GET", "/api/v1/metrics", metrics.metrics),
        Route("GET", "/metrics", metrics.prometheus),
        Route("GET", "/api/v1/health", health.report),
        Route("GET", "/livez", health.live),
        Route("GET", "/readyz", health.ready),
        Route("GET", "/openapi.json", pages.openapi),
        Route("GET", "/docs", pages.docs),
        Route("GET", "/", pages.home),
        Route("GET", "/problems/<slug>", pages.problem),
        Route("GET", "/static/<name>", StaticFiles().static_file),
        Route("GET", "/api/v1/ops/mails", mails.mail_queue),
        Route("GET", "/api/v1/ops/mails/<mail_id>", mails.owed_mail),
        Route("POST", "/api/v1/ops/mails/replay", mails.replay),
        Route("GET", "/ops", ops.dashboard),
        Route("GET", "/ops/events", ops.events),
        Route("GET", "/ops/session", ops.sign_in_page),
        Route("POST", "/ops/session", ops.sign_in),
        Route("POST", "/ops/session/end", ops.sign_out),
        *(_development(settings) if has_catcher(settings) else ()),
    )
    return routes


def _development(settings: Settings) -> Sequence[Route]:
    mails = DevMail(settings)
    return (
        Route("GET", "/dev/mail", mails.caught_mails),
        Route("GET", "/dev/mail/<mail_id>", mails.caught_mail),
    )


def create_app(settings: Settings, service: Service) -> Quart:
    """Build the application for the settings' loop; it starts nothing and holds no request's state."""
    app = (QuartTrio if settings.loop == "trio" else Quart)("service.http", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, RESPONSE_TIMEOUT=None, PROPAGATE_EXCEPTIONS=False)
    app.url_map.merge_slashes = False  # a path has one spelling: no redirects
    visits = Visits(settings, service.health.note, service.noticed)
    access = OpsAccess(settings, visits, service.limiter)
    users = Users(settings, visits, service.signup, available_locales(settings))
    routes = table(settings, service, access, users)
    for route in routes:
        app.add_url_rule(route.path, route.handler.__name__, route.handler, methods=[route.method])
    _surround(app, access, {route.handler.__name__: route for route in routes})
    app.after_request(users.count_refusal)  # runs before the one that shows the limits
    inside: Any = app.asgi_app
    turnstile = Turnstile(bounded(inside), service.signup.place)
    app.asgi_app = cast("Any", Edge(turnstile, settings, service.metrics))  # type: ignore[method-assign]  # Quart's way
    return app


def _surround(app: Quart, access: OpsAccess, routes: Mapping[str, Route]) -> None:
    """Name the route for the edge, guard what is for operators, turn errors into problems, show the limits."""

    @app.before_request
    async def enter() -> None:
        rule = request.url_rule
        if rule is None:
            return
        exchange_of(request.scope).route = f"{request.method} {template(rule.rule)}"
        operation = operation_of(routes[rule.endpoint].handler)
        if operation is not None and operation.access == "ops":
            await access.check()

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
