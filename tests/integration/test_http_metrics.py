from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as modern_parser
from quart_trio import QuartTrio

from actors.domain.histogram import Histogram
from actors.domain.totals import Totals
from actors.ports import Business, Delays, MailFigures, Metrics, StoreUnavailable
from service.http.metrics import MetricsCalls
from service.telemetry.exposition import (
    BUSINESS,
    COUNTERS,
    LEVELS,
    OPENMETRICS,
    PLAIN,
    exposition,
    families,
    wants_openmetrics,
)
from tests.fakes.http_service import FixedReader

if TYPE_CHECKING:
    from collections.abc import Iterable

REGISTER = "POST /api/v1/users/register"
LINE = re.compile(r'[a-z_]+(\{([a-z_]+="([^"\\\n]|\\[\\"n])*",?)+\})? -?[0-9.e+-]+')
SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def metrics() -> Metrics:
    """Return metrics with something in every place, awkward labels included."""
    totals = Totals("api-1")
    seen = [(REGISTER, 201, 12.5), (REGISTER, 503, 20_000.0), ('GET /"odd\\path"\n', 404, 1.0), ("unmatched", 404, 1.0)]
    totals.count(seen, 0)
    totals.raise_to({f"{name}|x": 2 for name in COUNTERS})
    histogram = Histogram()
    for value in (12.5, 20_000.0):
        histogram.add(value)
    return Metrics(
        totals=totals.totals(),
        levels={"one": {f"{name}|x": 1 for name in LEVELS}, "two": {f"{name}|x": 3 for name in LEVELS}},
        latencies={REGISTER: histogram},
        business=Business(5, 4, 3, 2, 1),
        mail=MailFigures(7, 12.3, 1, {"550 mailbox": 2}, Delays(3, 10.0, 20.0, 30.1234)),
        workers=2,
    )


async def fetch(path: str, reader: FixedReader, accept: str = "*/*") -> Any:  # noqa: ANN401 - a response of quart's
    """Call the handlers inside a small application."""
    app = QuartTrio("test")
    calls = MetricsCalls(reader)
    app.add_url_rule("/api/v1/metrics", "json", calls.metrics)
    app.add_url_rule("/metrics", "text", calls.prometheus)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    return await app.test_client().get(path, headers={"Accept": accept})


async def test_the_json_has_exactly_the_fields_of_the_contract() -> None:
    """Every field is there with its unit, and none besides."""
    answer = await fetch("/api/v1/metrics", FixedReader(metrics()))
    body = await answer.get_json()
    assert body == {
        "request_counts": {REGISTER: 2, 'GET /"odd\\path"\n': 1, "unmatched": 1},
        "status_counts": {"201": 1, "404": 2, "503": 1},
        "error_count": 1,
        "business_metrics": {
            "registrations": 5,
            "activations": 4,
            "resends": 3,
            "mails_accepted": 2,
            "mails_dead": 1,
        },
        "latencies": {
            REGISTER: {
                "count": 2,
                "p50": pytest.approx(12.5, rel=0.01),
                "p95": pytest.approx(20_000, rel=0.01),
                "p99": pytest.approx(20_000, rel=0.01),
                "min": 12.5,
                "max": 20_000,
            }
        },
        "mail": {
            "queued": 7,
            "oldest_queued_seconds": 13,
            "time_to_accept": {"count": 3, "p50": 10.0, "p95": 20.0, "p99": 30.123},
        },
        "window_seconds": 3600,
        "workers": 2,
    }


async def test_an_empty_service_answers_zeros_and_nulls() -> None:
    """Before the first request everything is zero, and percentiles that do not exist are null."""
    empty = Metrics({}, {}, {}, Business(), MailFigures(), 1)
    body = await (await fetch("/api/v1/metrics", FixedReader(empty))).get_json()
    assert body["request_counts"] == body["latencies"] == {}
    assert body["mail"]["time_to_accept"] == {"count": 0, "p50": None, "p95": None, "p99": None}
    assert "notes" not in body


async def test_what_could_not_be_read_is_said() -> None:
    """Notes appear when there are some."""
    body = await (await fetch("/api/v1/metrics", FixedReader(replace(metrics(), notes=("Redis is away.",))))).get_json()
    assert body["notes"] == ["Redis is away."]


async def test_an_unavailable_store_is_left_to_the_table_of_problems() -> None:
    """The handler catches nothing."""
    with pytest.raises(StoreUnavailable):
        await MetricsCalls(FixedReader(None)).metrics()


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (SCRAPER, True),
        ("application/openmetrics-text", True),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=rubbish", False),
        ("*/*", False),
        ("", False),
    ],
)
async def test_the_format_follows_accept(accept: str, *, wanted: bool) -> None:
    """OpenMetrics goes to who prefers it, plain text to everyone else."""
    assert wants_openmetrics(accept) is wanted
    answer = await fetch("/metrics", FixedReader(metrics()), accept)
    assert answer.headers["Content-Type"] == (OPENMETRICS if wanted else PLAIN)
    assert (await answer.get_data()).endswith(b"# EOF\n") is wanted


def test_prometheus_own_parsers_read_both_formats_alike() -> None:
    """The parsers of the Prometheus client find the same samples in both, label values unharmed."""
    plain = samples(parser.text_string_to_metric_families(exposition(metrics(), openmetrics=False)))
    modern = samples(modern_parser.text_string_to_metric_families(exposition(metrics(), openmetrics=True)))
    assert plain == modern
    labels = (("method", "POST"), ("route", "/api/v1/users/register"), ("status", "201"))
    assert ("vestibule_http_requests_total", labels, 1.0) in plain
    assert any(("route", '/"odd\\path"\n') in labels for _, labels, _ in plain)


def samples(parsed: Iterable[Any]) -> set[tuple[str, tuple[tuple[str, str], ...], float]]:
    """Return what makes each sample."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in parsed
        for sample in family.samples
    }


def test_every_line_is_a_comment_or_a_sample() -> None:
    """Each line of the plain text fits the format's grammar."""
    for line in exposition(metrics(), openmetrics=False).splitlines():
        assert line.startswith(("# HELP vestibule_", "# TYPE vestibule_")) or LINE.fullmatch(line), line


def test_histogram_buckets_are_cumulative_and_end_in_the_count() -> None:
    """Buckets rise with `le` in seconds, and +Inf holds all requests, those over the last bound too."""
    (duration,) = (each for each in families(metrics()) if each.name == "vestibule_http_request_duration_seconds")
    mine = [sample for sample in duration.samples if ("route", "/api/v1/users/register") in sample[1]]
    buckets = [(dict(labels)["le"], value) for suffix, labels, value in mine if suffix == "_bucket"]
    assert buckets[:3] == [("0.005", 0), ("0.01", 0), ("0.025", 1)]
    assert buckets[-2:] == [("10.0", 1), ("+Inf", 2)]
    rest = {suffix: value for suffix, _, value in mine if suffix != "_bucket"}
    assert rest == {"_sum": 20.0125, "_count": 2}


def test_levels_are_summed_over_workers_and_every_known_name_is_exported() -> None:
    """No label grows with the workers, and every entry of the tables appears with the metrics' prefix."""
    found = {family.name: family for family in families(metrics())}
    for shown, _, _ in (*COUNTERS.values(), *LEVELS.values()):
        assert found[shown].samples
    assert found["vestibule_actor_mailbox_depth"].samples == [("", (("actor", "x"),), 4)]
    assert {f"vestibule_{name}" for name in BUSINESS} <= set(found)
    assert all(name.startswith("vestibule_") and not name.endswith("_total") for name in found)
