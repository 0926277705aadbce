"""The application: every route on one screen, and what is done around each."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from time import time
from typing import TYPE_CHECKING, Any, cast

from quart import Quart, Response, request
from quart_trio import QuartTrio

from service.http.client import Clients, rate_limit_headers, readings
from service.http.early import EarlyRefusals
from service.http.health import HealthCalls
from service.http.json_body import MOST_BYTES, bounded
from service.http.metrics import MetricsCalls
from service.http.middleware import Middleware, exchange_of, log_crash
from service.http.openapi import Route, document, operation_of
from service.http.ops import OpsAccess
from service.http.pages import DevMail, Pages
from service.http.problems import INTERNAL_ERROR, MEDIA, answer_to
from service.http.schemas import response
from service.http.users import Users

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Mapping, Sequence

    from actors.kit.background import BackgroundTasks
    from actors.kit.mailbox import Address
    from actors.metrics_ports import MetricsReader
    from actors.signup import SignUp
    from service.http.health import Health
    from service.http.pages import CaughtMails
    from service.settings import Settings


@dataclass(frozen=True, slots=True)
class Parts:
    """What the application talks to.

    `noticed` counts for the metrics what no actor counts. `caught_mails` is there where mails go to the built-in
    catcher.
    """

    settings: Settings
    signup: SignUp
    background: BackgroundTasks
    metrics: Address
    limiter: Address
    reader: MetricsReader
    health: Health
    locales: Sequence[str]
    noticed: Counter[str]
    caught_mails: CaughtMails | None = None


def routes(parts: Parts, clients: Clients) -> tuple[Route, ...]:
    """Return every route there is."""
    release = version("vestibule")
    users, metrics = Users(parts, clients), MetricsCalls(parts.reader)
    health = HealthCalls(parts.health, release)
    pages = Pages(parts.settings, release, cache(lambda: document(table, release, parts.settings.root)))
    table: tuple[Route, ...] = (
        Route("POST", "/api/v1/users/register", users.register),
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
        Route("GET", "/static/<name>", pages.static_file),
        Route("GET", "/ops", pages.ops),
    )
    if parts.caught_mails is not None:
        caught = DevMail(parts.caught_mails, pages)
        table += (
            Route("GET", "/dev/mail", caught.caught_mails),
            Route("GET", "/dev/mail/<mail_id>", caught.caught_mail),
        )
    return table


def build(parts: Parts) -> Quart:
    """Build the application for the settings' loop; it starts nothing and holds no request's state."""
    settings = parts.settings
    app = (QuartTrio if settings.loop == "trio" else Quart)("service.http", static_folder=None)
    app.config.update(MAX_CONTENT_LENGTH=MOST_BYTES, RESPONSE_TIMEOUT=None, PROPAGATE_EXCEPTIONS=False)
    app.url_map.merge_slashes = False  # a path has one spelling: no redirects
    clients = Clients(settings.trusted_proxies, parts.health.note, parts.noticed)
    access = OpsAccess(settings, clients, parts.limiter)
    table = {route.handler.__name__: route for route in routes(parts, clients)}
    for name, route in table.items():
        app.add_url_rule(route.path, name, route.handler, methods=[route.method])
    _surround(app, settings, access, table)
    inside: Any = app.asgi_app
    early = EarlyRefusals(parts.signup, clients, settings.root)
    app.asgi_app = cast("Any", bounded(Middleware(inside, settings, parts.metrics, early.answer)))  # type: ignore[method-assign]  # Quart's way
    return app


def _surround(app: Quart, settings: Settings, access: OpsAccess, table: Mapping[str, Route]) -> None:
    """Name the route for the middleware, guard what is for operators, turn errors into problems, show the limits."""
    operations = {name: operation_of(route.handler) for name, route in table.items()}
    guarded = {name for name, operation in operations.items() if operation and operation.access == "ops"}

    @app.before_request
    async def enter() -> None:
        rule = request.url_rule
        if rule is not None:
            exchange_of(request.scope).route = f"{request.method} {table[rule.endpoint].template}"
            if rule.endpoint in guarded:
                await access.check()

    @app.errorhandler(Exception)
    async def problem(error: Exception) -> Response:
        answer = answer_to(error, settings.root)
        if answer.status == INTERNAL_ERROR.status:
            log_crash(error, exchange_of(request.scope).request_id)
        return response(answer.body, MEDIA, answer.status, answer.headers)

    @app.after_request
    async def show_limits(answer: Response) -> Response:
        if said := readings():
            answer.headers.update(rate_limit_headers(said, time()))
        return answer
