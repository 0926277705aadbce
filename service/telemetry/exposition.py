"""The metrics as text for Prometheus: format 0.0.4, or OpenMetrics 1.0 where the scraper asks for it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector
from werkzeug.datastructures import MIMEAccept
from werkzeug.http import parse_accept_header

from actors.domain.totals import BOUNDS, OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from actors.metrics_ports import Metrics

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_MEDIA = "application/openmetrics-text"
OPENMETRICS = f"{OPENMETRICS_MEDIA}; version=1.0.0; charset=utf-8"
PARAMETERS = re.compile(r";\s*(?!q=)[^;,]*")  # of a media type, but for its weight

# What workers report beside requests: the name in their reports -> how it is shown; the label names its second field.
COUNTERS = {
    "restarts": ("vestibule_actor_restarts", "actor", "Times an actor crashed and was rebuilt."),
    "mailbox_dropped": ("vestibule_actor_mailbox_dropped", "actor", "Offers that found no room in a mailbox."),
    "mailbox_turned_away": ("vestibule_actor_mailbox_turned_away", "actor", "Asks that found no room in a mailbox."),
    "breaker_opened": ("vestibule_breaker_opened", "server", "Times a worker found a server away."),
    "limits_admitted": ("vestibule_limit_admitted", "rule", "Requests that a limit let through."),
    "limits_refused": ("vestibule_limit_refused", "rule", "Requests that a full window turned away."),
    "limits_given_back": ("vestibule_limit_given_back", "", "Uses given back because the work could not be done."),
    "limits_give_backs_lost": ("vestibule_limit_give_backs_lost", "", "Uses that stayed counted: no store was there."),
    "pool_connected": ("vestibule_database_pool_connected", "", "Database connections opened."),
    "pool_timed_out": ("vestibule_database_pool_timed_out", "", "Statements that had no answer in time."),
    "forwarded_untrusted": ("vestibule_forwarded_untrusted", "", "Forwarded headers of peers that no setting trusts."),
    "log_lines_dropped": ("vestibule_log_lines_dropped", "", "Log lines that nobody took in time."),
}
LEVELS = {
    "mailbox_waiting": ("vestibule_actor_mailbox_depth", "actor", "Messages waiting in the mailboxes of an actor."),
    "breaker_open": ("vestibule_breaker_open", "server", "Workers that find a server away now."),
    "pool_connections": ("vestibule_database_pool_connections", "", "Open database connections."),
    "pool_available": ("vestibule_database_pool_available", "", "Idle database connections."),
    "pool_waiting": ("vestibule_database_pool_waiting", "", "Threads waiting for a database connection."),
}
BUSINESS = {
    "registrations": "Accounts registered, registrations of dead pending accounts included.",
    "activations": "Accounts activated.",
    "resends": "Codes sent again on request.",
    "mails_accepted": "Mails that the mail server accepted.",
    "mails_dead": "Mails that were given up.",
}


def wants_openmetrics(accept: str) -> bool:
    """Whether an Accept header prefers OpenMetrics over plain text (RFC 9110, 12.5.1)."""
    weights = parse_accept_header(PARAMETERS.sub("", accept.lower()), MIMEAccept)
    named = OPENMETRICS_MEDIA in weights.values()
    return named and 0 < weights[OPENMETRICS_MEDIA] >= weights["text/plain"]


def exposition(metrics: Metrics, *, openmetrics: bool) -> bytes:
    """Return the text of all families."""
    text: bytes = (generate_openmetrics if openmetrics else generate_latest)(Families(metrics))
    return text


@dataclass(frozen=True, slots=True)
class Families(Collector):
    """Everything that is exported, for prometheus_client to write."""

    metrics: Metrics

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        yield from _requests(self.metrics.totals)
        for name, help_ in BUSINESS.items():
            yield CounterMetricFamily(f"vestibule_{name}", help_, value=getattr(self.metrics.business, name))
        yield from _mail(self.metrics)
        yield GaugeMetricFamily("vestibule_workers", "API workers that are alive.", value=self.metrics.workers)
        yield from _runtime(CounterMetricFamily, COUNTERS, self.metrics.totals)
        levels: dict[str, float] = {}
        for of_worker in self.metrics.levels.values():  # summed: a label per worker would grow with every recycled one
            for name, value in of_worker.items():
                levels[name] = levels.get(name, 0) + value
        yield from _runtime(GaugeMetricFamily, LEVELS, levels)


def _requests(totals: Mapping[str, float]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "vestibule_http_requests", "Requests answered.", labels=("route", "method", "status")
    )
    durations = HistogramMetricFamily(
        "vestibule_http_request_duration_seconds", "Time to the answer.", labels=("route", "method")
    )
    for name, value in sorted(totals.items()):
        kind, _, rest = name.partition("|")
        if kind == "requests":
            route, _, status = rest.rpartition("|")
            requests.add_metric((*_route(route), status), value)
        elif kind == "sum":
            buckets, count = [], 0.0
            for bound in (*BOUNDS, OVERFLOW):
                count += totals.get(f"bucket|{rest}|{bound}", 0)
                buckets.append((OVERFLOW if bound == OVERFLOW else str(float(bound) / 1000), count))
            durations.add_metric(_route(rest), buckets, value / 1000)
    yield from (requests, durations)


def _route(route: str) -> tuple[str, str]:
    """Return the path and the method; what matched no route has no method."""
    method, _, path = route.partition(" ")
    return (path, method) if path else (route, "")


def _mail(metrics: Metrics) -> Iterator[Metric]:
    mail, delays = metrics.mail, metrics.mail.time_to_accept
    states = {"queued": mail.queued, "sending": mail.sending}
    yield _gauge("vestibule_mail_queue_depth", "Owed mails, waiting or being sent.", "state", states)
    oldest = mail.oldest_queued_seconds
    yield GaugeMetricFamily("vestibule_mail_queue_oldest_seconds", "Age of the longest waiting mail.", value=oldest)
    percentiles = {"50": delays.p50, "95": delays.p95, "99": delays.p99}
    known = {share: value / 1000 for share, value in percentiles.items() if value is not None}
    help_ = "From a mail being owed to its acceptance, over the last hour."
    yield _gauge("vestibule_mail_time_to_accept_seconds", help_, "percentile", known)
    yield _gauge("vestibule_mail_dead", "Given up mails that are still kept, by reason.", "reason", mail.dead)


def _gauge(name: str, help_: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help_, labels=(label,))
    for each, value in sorted(values.items()):
        family.add_metric((each,), value)
    return family


def _runtime(
    kind: Any,  # noqa: ANN401 - one of the two families, which share no type
    table: Mapping[str, tuple[str, str, str]],
    values: Mapping[str, float],
) -> Iterator[Metric]:
    for name, (shown, label, help_) in table.items():
        family = kind(shown, help_, labels=(label,) if label else ())
        for key, value in sorted(values.items()):
            first, _, rest = key.partition("|")
            if first == name:
                family.add_metric((rest,) if label else (), value)
        yield family
