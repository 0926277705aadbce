from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from actors.metrics_ports import Business, MailFigures, Metrics
from service.telemetry.exposition import OPENMETRICS, PLAIN
from tests.fakes.http_client import problem
from tests.fakes.http_service import FakeService, FixedReader, metrics


async def fetch(path: str, known: Metrics | None, accept: str = "*/*") -> Any:  # noqa: ANN401 - a response of quart's
    """Ask as an operator on this machine."""
    service = FakeService()
    service.reader = FixedReader(known)
    headers = {"Accept": accept, "Host": "localhost"}
    return await service.app().test_client().get(path, headers=headers, scope_base={"client": ("127.0.0.1", 5)})


async def test_the_json_has_exactly_the_fields_of_the_contract() -> None:
    """Every field is there with its unit, and none besides; what could not be read is said in notes."""
    body = await (await fetch("/api/v1/metrics", metrics())).get_json()
    assert body == {
        "request_counts": {"GET /livez": 2, "POST /x": 1},
        "status_counts": {"200": 2, "503": 1},
        "error_count": 1,
        "business_metrics": {"registrations": 5, "activations": 4, "resends": 3, "mails_accepted": 2, "mails_dead": 1},
        "latencies": {
            "GET /livez": {
                "count": 2,
                "p50": pytest.approx(3.0, rel=0.01),
                "p95": pytest.approx(30.0, rel=0.01),
                "p99": pytest.approx(30.0, rel=0.01),
                "min": 3.0,
                "max": 30.0,
            }
        },
        "mail": {
            "queued": 7,
            "oldest_queued_seconds": 13,
            "time_to_accept": {"count": 3, "p50": 10.0, "p95": 20.0, "p99": 30.123},
        },
        "window_seconds": 3600,
        "workers": 2,
        "notes": ["Redis is away."],
    }
    body = await (await fetch("/api/v1/metrics", replace(metrics(), notes=()))).get_json()
    assert "notes" not in body


async def test_an_empty_service_answers_zeros_and_nulls() -> None:
    """Before the first request everything is zero, and percentiles that do not exist are null."""
    empty = Metrics({}, {}, {}, Business(), MailFigures(), 1)
    body = await (await fetch("/api/v1/metrics", empty)).get_json()
    assert body["request_counts"] == body["latencies"] == {}
    assert body["mail"]["time_to_accept"] == {"count": 0, "p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize("path", ["/api/v1/metrics", "/metrics"])
async def test_metrics_that_cannot_be_read_are_a_problem(path: str) -> None:
    """With no store and nothing remembered the answer is 503."""
    await problem(await fetch(path, None), 503, "StoreUnavailable")


@pytest.mark.parametrize(("accept", "media"), [("application/openmetrics-text", OPENMETRICS), ("*/*", PLAIN)])
async def test_scrapers_get_the_format_that_they_ask_for(accept: str, media: str) -> None:
    """OpenMetrics ends with its mark, and Vary says that the answer depends on Accept."""
    answer = await fetch("/metrics", metrics(), accept)
    assert (answer.status_code, answer.headers["Content-Type"], answer.headers["Vary"]) == (200, media, "Accept")
    assert (await answer.get_data()).endswith(b"# EOF\n") is (media == OPENMETRICS)
