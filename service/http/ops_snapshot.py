"""One moment of the service as the dashboard is told it."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING

from actors.domain.tally import BOUNDS, OVERFLOW
from service.http.metrics import BusinessView, DelayView, LatencyView, MetricsView
from service.http.schemas import View

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from actors.metrics_ports import Metrics


class RouteView(View):
    """A route: its answers by status since the beginning, its latency within the window."""

    route: str
    statuses: dict[str, int]
    latency: LatencyView | None


class MailsView(View):
    """The mail queue, and what was given up and why."""

    queued: int
    sending: int
    oldest_queued_seconds: float
    dead: dict[str, int]
    time_to_accept: DelayView


class LimitView(View):
    """Decisions of one limit."""

    rule: str
    admitted: int
    refused: int


class BreakerView(View):
    """A server as the workers see it: how many find it away now, how often any of them did."""

    server: str
    open: int
    opened: int


class ActorView(View):
    """The mailboxes of one kind of actor, over all workers."""

    actor: str
    waiting: int
    turned_away: int
    dropped: int
    restarts: int


class SnapshotView(View):
    """Everything on the page. `buckets` are requests up to each bound in milliseconds, over all routes."""

    version: str
    workers: int
    routes: list[RouteView]
    buckets: list[tuple[float | None, int]]
    business: BusinessView
    mail: MailsView
    limits: list[LimitView]
    breakers: list[BreakerView]
    actors: list[ActorView]
    notes: list[str]

    @classmethod
    def of(cls, metrics: Metrics, notes: Iterable[str], version: str) -> SnapshotView:
        """Show what was read, with the notes of the health check beside those of the reading."""
        shown = MetricsView.of(metrics)
        fields = _Fields(metrics)
        mail = metrics.mail
        return cls(
            version=version,
            workers=metrics.workers,
            routes=_routes(metrics, shown.latencies),
            buckets=_buckets(metrics.totals),
            business=shown.business_metrics,
            mail=MailsView(
                queued=mail.queued,
                sending=mail.sending,
                oldest_queued_seconds=round(mail.oldest_queued_seconds, 1),
                dead=dict(sorted(mail.dead.items(), key=lambda item: (-item[1], item[0]))),
                time_to_accept=shown.mail.time_to_accept,
            ),
            limits=[
                LimitView(
                    rule=rule,
                    admitted=fields.get("limits_admitted", rule),
                    refused=fields.get("limits_refused", rule),
                )
                for rule in fields.names("limits_admitted", "limits_refused")
            ],
            breakers=[
                BreakerView(
                    server=server,
                    open=fields.get("breaker_open", server),
                    opened=fields.get("breaker_opened", server),
                )
                for server in fields.names("breaker_open", "breaker_opened")
            ],
            actors=[
                ActorView(
                    actor=actor,
                    waiting=fields.get("mailbox_waiting", actor),
                    turned_away=fields.get("mailbox_turned_away", actor),
                    dropped=fields.get("mailbox_dropped", actor),
                    restarts=fields.get("restarts", actor),
                )
                for actor in fields.names("mailbox_waiting", "restarts")
            ],
            notes=list(dict.fromkeys([*metrics.notes, *notes])),
        )


class _Fields:
    """Totals and summed levels whose names have two fields, `kind|name`."""

    def __init__(self, metrics: Metrics) -> None:
        self._values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        for source in (metrics.totals, *metrics.levels.values()):
            for key, value in source.items():
                kind, _, name = key.partition("|")
                self._values[kind][name] += value

    def names(self, *kinds: str) -> Sequence[str]:
        return sorted({name for kind in kinds for name in self._values[kind]})

    def get(self, kind: str, name: str) -> int:
        return int(self._values[kind][name])


def _routes(metrics: Metrics, latencies: Mapping[str, LatencyView]) -> list[RouteView]:
    statuses: dict[str, dict[str, int]] = {}
    for name, value in sorted(metrics.totals.items()):
        kind, _, rest = name.partition("|")
        if kind == "requests":
            route, _, status = rest.rpartition("|")
            statuses.setdefault(route, {})[status] = int(value)
    return [RouteView(route=route, statuses=each, latency=latencies.get(route)) for route, each in statuses.items()]


def _buckets(totals: Mapping[str, float]) -> list[tuple[float | None, int]]:
    """Return the cumulative histogram of all routes; the last bound is None, for no bound."""
    counts = dict.fromkeys([*map(str, BOUNDS), OVERFLOW], 0)
    for name, value in totals.items():
        kind, _, rest = name.partition("|")
        if kind == "bucket":
            counts[rest.rpartition("|")[2]] += int(value)
    return list(zip([*BOUNDS, None], accumulate(counts.values()), strict=True))
