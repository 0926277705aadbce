from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as modern_parser

from actors.domain.totals import Totals
from actors.metrics_ports import Metrics
from service.telemetry.exposition import BUSINESS, COUNTERS, LEVELS, Families, exposition, wants_openmetrics
from tests.fakes.http_service import metrics

Sample = tuple[str, tuple[tuple[str, str], ...], float]

REGISTER = "POST /api/v1/users/register"
DURATION = "vestibule_http_request_duration_seconds"
SCRAPER = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)


def awkward() -> Metrics:
    """Return metrics with something in every place, awkward labels included."""
    totals = Totals("api-1")
    seen = [(REGISTER, 201, 12.5), (REGISTER, 503, 20_000.0), ('GET /"odd\\path"\n', 404, 1.0), ("unknown", 404, 1.0)]
    totals.count(seen, 0)
    totals.raise_to({f"{name}|x": 2 for name in COUNTERS})
    levels = {"one": {f"{name}|x": 1 for name in LEVELS}, "two": {f"{name}|x": 3 for name in LEVELS}}
    return replace(metrics(), totals=totals.totals(), levels=levels)


def samples(parsed: Iterable[Any]) -> set[Sample]:
    """Return what makes each sample."""
    return {
        (sample.name, tuple(sorted(sample.labels.items())), sample.value)
        for family in parsed
        for sample in family.samples
    }


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (SCRAPER, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text; version=1.0.0", True),
        ("text/plain;version=0.0.4;q=0.5,application/openmetrics-text;q=0.4", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=rubbish", False),
        ("*/*", False),
        ("", False),
    ],
)
def test_the_format_follows_accept(accept: str, *, wanted: bool) -> None:
    """OpenMetrics goes to a scraper that prefers it, plain text to all others."""
    assert wants_openmetrics(accept) is wanted


def test_prometheus_own_parsers_read_both_formats_alike() -> None:
    """Both parsers find the same samples, label values unharmed, and every name begins with ours."""
    plain = samples(parser.text_string_to_metric_families(exposition(awkward(), openmetrics=False).decode()))
    modern = samples(modern_parser.text_string_to_metric_families(exposition(awkward(), openmetrics=True).decode()))
    assert plain == modern
    labels = (("method", "POST"), ("route", "/api/v1/users/register"), ("status", "201"))
    assert ("vestibule_http_requests_total", labels, 1.0) in plain
    assert any(("route", '/"odd\\path"\n') in labels for _, labels, _ in plain)
    assert all(name.startswith("vestibule_") for name, _, _ in plain)


def test_histogram_buckets_are_cumulative_and_end_in_the_count() -> None:
    """Buckets rise with `le` in seconds, and +Inf holds all requests, those over the last bound too."""
    (duration,) = (family for family in Families(awkward()).collect() if family.name == DURATION)
    mine = [sample for sample in duration.samples if sample.labels["route"] == "/api/v1/users/register"]
    buckets = [(sample.labels["le"], sample.value) for sample in mine if sample.name.endswith("_bucket")]
    assert buckets[:3] == [("0.005", 0), ("0.01", 0), ("0.025", 1)]
    assert buckets[-2:] == [("10.0", 1), ("+Inf", 2)]
    rest = {sample.name.removeprefix(DURATION): sample.value for sample in mine if not sample.name.endswith("_bucket")}
    assert rest == {"_sum": 20.0125, "_count": 2}


def test_levels_are_summed_over_workers_and_every_known_name_is_exported() -> None:
    """No label grows with the workers, and every entry of the tables appears."""
    found = {family.name: family for family in Families(awkward()).collect()}
    for shown, _, _ in (*COUNTERS.values(), *LEVELS.values()):
        assert found[shown].samples
    [depth] = found["vestibule_actor_mailbox_depth"].samples
    assert (depth.labels, depth.value) == ({"actor": "x"}, 4)
    assert {f"vestibule_{name}" for name in BUSINESS} <= set(found)
