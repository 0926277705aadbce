"""The metrics as text for Prometheus: format 0.0.4, or OpenMetrics 1.0 where the scraper asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from actors.domain.totals import BOUNDS, OVERFLOW

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from actors.ports import Metrics

PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its name without `_total`, its kind, a sentence, and the samples as (suffix, labels, value)."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: Sequence[tuple[str, Labels, float]]


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
    weights = {"application/openmetrics-text": 0.0, "text/plain": 0.0}
    for part in accept.split(","):
        media, *parameters = (each.strip().lower() for each in part.split(";"))
        if media in weights:
            weights[media] = max(weights[media], _weight(parameters))
    return weights["application/openmetrics-text"] > 0 and (
        weights["application/openmetrics-text"] >= weights["text/plain"]
    )


def _weight(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


def exposition(metrics: Metrics, *, openmetrics: bool) -> str:
    """Return the text of all families."""
    lines: list[str] = []
    for family in families(metrics):
        total = "_total" if family.kind == "counter" else ""
        shown = family.name if openmetrics else family.name + total
        lines += [f"# HELP {shown} {_escaped(family.help)}", f"# TYPE {shown} {family.kind}"]
        for suffix, labels, value in family.samples:
            text = ",".join(f'{name}="{_escaped(each)}"' for name, each in labels)
            lines.append(
                f"{family.name}{suffix or total}{{{text}}} {_number(value)}"
                if text
                else f"{family.name}{suffix or total} {_number(value)}"
            )
    return "\n".join([*lines, "# EOF"] if openmetrics else lines) + "\n"


def families(metrics: Metrics) -> Iterator[Family]:
    """Yield everything that is exported; a family without samples is left out."""
    yield from filter(lambda family: family.samples, _all(metrics))


def _all(metrics: Metrics) -> Iterator[Family]:
    yield Family("vestibule_http_requests", "counter", "Requests answered.", list(_requests(metrics.totals)))
    yield Family(
        "vestibule_http_request_duration_seconds", "histogram", "Time to the answer.", list(_durations(metrics.totals))
    )
    for name, help_ in BUSINESS.items():
        yield Family(f"vestibule_{name}", "counter", help_, [("", (), getattr(metrics.business, name))])
    yield from _mail(metrics)
    yield Family("vestibule_workers", "gauge", "API workers that are alive.", [("", (), metrics.workers)])
    yield from _runtime("counter", COUNTERS, metrics.totals)
    levels: dict[str, float] = {}
    for of_worker in metrics.levels.values():  # summed: a label per worker would grow with every recycled one
        for name, value in of_worker.items():
            levels[name] = levels.get(name, 0) + value
    yield from _runtime("gauge", LEVELS, levels)


def _requests(totals: Mapping[str, float]) -> Iterator[tuple[str, Labels, float]]:
    for name, value in sorted(totals.items()):
        kind, _, rest = name.partition("|")
        if kind == "requests":
            route, _, status = rest.rpartition("|")
            yield "", (*_route(route), ("status", status)), value


def _durations(totals: Mapping[str, float]) -> Iterator[tuple[str, Labels, float]]:
    for name in sorted(name for name in totals if name.startswith("sum|")):
        route = name.removeprefix("sum|")
        labels, count = _route(route), 0.0
        for bound in BOUNDS:
            count += totals.get(f"bucket|{route}|{bound}", 0)
            yield "_bucket", (*labels, ("le", str(bound / 1000))), count
        count += totals.get(f"bucket|{route}|{OVERFLOW}", 0)
        yield "_bucket", (*labels, ("le", OVERFLOW)), count
        yield "_sum", labels, totals[name] / 1000
        yield "_count", labels, count


def _route(route: str) -> Labels:
    method, _, path = route.partition(" ")
    return (("route", path), ("method", method)) if path else (("route", route), ("method", ""))


def _mail(metrics: Metrics) -> Iterator[Family]:
    mail, delays = metrics.mail, metrics.mail.time_to_accept
    waiting = [("", (("state", "queued"),), float(mail.queued)), ("", (("state", "sending"),), float(mail.sending))]
    yield Family("vestibule_mail_queue_depth", "gauge", "Owed mails, waiting or being sent.", waiting)
    oldest = mail.oldest_queued_seconds
    yield Family("vestibule_mail_queue_oldest_seconds", "gauge", "Age of the longest waiting mail.", [("", (), oldest)])
    percentiles = (("50", delays.p50), ("95", delays.p95), ("99", delays.p99))
    yield Family(
        "vestibule_mail_time_to_accept_seconds",
        "gauge",
        "From a mail being owed to its acceptance, over the last hour.",
        [("", (("percentile", share),), value / 1000) for share, value in percentiles if value is not None],
    )
    dead = [("", (("reason", reason),), float(count)) for reason, count in sorted(mail.dead.items())]
    yield Family("vestibule_mail_dead", "gauge", "Given up mails that are still kept, by reason.", dead)


def _runtime(
    kind: Literal["counter", "gauge"], table: Mapping[str, tuple[str, str, str]], values: Mapping[str, float]
) -> Iterator[Family]:
    for name, (shown, label, help_) in table.items():
        samples: list[tuple[str, Labels, float]] = []
        for key, value in sorted(values.items()):
            first, _, rest = key.partition("|")
            if first == name:
                samples.append(("", ((label, rest),) if label else (), value))
        yield Family(shown, kind, help_, samples)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(round(value, 9))
