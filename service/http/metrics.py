"""The metrics for operators: as JSON, and as text for Prometheus."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Annotated

from pydantic import BeforeValidator, Field
from quart import request

from actors.domain.totals import WINDOW_SECONDS
from service.http.openapi import describes
from service.http.schemas import View, response
from service.telemetry.exposition import OPENMETRICS, PLAIN, exposition, wants_openmetrics

if TYPE_CHECKING:
    from quart import Response

    from actors.domain.histogram import Histogram
    from actors.metrics_ports import Metrics, MetricsReader

ERRORS = range(500, 600)


Milliseconds = Annotated[float, BeforeValidator(lambda value: round(value, 3))]


class BusinessView(View):
    """What happened since the service was set up."""

    registrations: int
    activations: int
    mails_accepted: int
    mails_dead: int
    resends: int


class LatencyView(View):
    """Milliseconds of one route within the window; percentiles at most 1 % off."""

    count: int
    p50: Milliseconds
    p95: Milliseconds
    p99: Milliseconds
    min: Milliseconds
    max: Milliseconds

    @classmethod
    def over(cls, histogram: Histogram) -> LatencyView:
        """Show a histogram that is not empty."""
        p50, p95, p99 = (histogram.quantile(share) or 0.0 for share in (0.5, 0.95, 0.99))
        return cls(count=histogram.count, p50=p50, p95=p95, p99=p99, min=histogram.low, max=histogram.high)


class DelayView(View):
    """Milliseconds from a mail being owed to its acceptance, within the window; null without mails."""

    count: int
    p50: Milliseconds | None
    p95: Milliseconds | None
    p99: Milliseconds | None


class MailView(View):
    """The mail queue."""

    queued: int
    oldest_queued_seconds: Annotated[int, BeforeValidator(ceil)]
    time_to_accept: DelayView


class MetricsView(View):
    """All metrics, over all workers and machines; counters never fall."""

    request_counts: dict[str, int]
    status_counts: dict[str, int]
    error_count: int = Field(description="Answers of 5xx.")
    business_metrics: BusinessView
    latencies: dict[str, LatencyView]
    mail: MailView
    window_seconds: int = WINDOW_SECONDS
    workers: int
    notes: list[str] | None = Field(None, description="What could not be read, in sentences; absent when all is well.")

    @classmethod
    def all_of(cls, metrics: Metrics) -> MetricsView:
        """Show what was read."""
        routes: dict[str, int] = {}
        statuses: dict[str, int] = {}
        for name, value in sorted(metrics.totals.items()):
            kind, _, rest = name.partition("|")
            if kind == "requests":
                route, _, status = rest.rpartition("|")
                routes[route] = routes.get(route, 0) + int(value)
                statuses[status] = statuses.get(status, 0) + int(value)
        return cls(
            request_counts=routes,
            status_counts=dict(sorted(statuses.items())),
            error_count=sum(count for status, count in statuses.items() if int(status) in ERRORS),
            business_metrics=BusinessView.of(metrics.business),
            latencies={route: LatencyView.over(histogram) for route, histogram in sorted(metrics.latencies.items())},
            mail=MailView.of(metrics.mail),
            workers=metrics.workers,
            notes=list(metrics.notes) or None,
        )


class MetricsCalls:
    """The handlers, around the reader."""

    def __init__(self, reader: MetricsReader) -> None:
        self._reader = reader

    @describes({200: MetricsView}, access="ops")
    async def metrics(self) -> Response:
        """Show everything counted, exact to about a second."""
        view = MetricsView.all_of(await self._reader.read())
        return response(view.model_dump_json(exclude=None if view.notes else {"notes"}), "application/json")

    @describes({200: PLAIN}, access="ops")
    async def prometheus(self) -> Response:
        """Show the metrics as text for Prometheus, or as OpenMetrics where the scraper prefers it."""
        openmetrics = wants_openmetrics(request.headers.get("Accept", ""))
        text = exposition(await self._reader.read(), openmetrics=openmetrics)
        return response(text, OPENMETRICS if openmetrics else PLAIN, headers={"Vary": "Accept"})
