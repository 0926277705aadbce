from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.remote_service import RemoteService

if TYPE_CHECKING:
    from collections.abc import Iterator

OPS = Path(__file__).resolve().parents[2] / "ops"
REGISTER = "POST /api/v1/users/register"
METRICS: dict[str, Any] = {
    "request_counts": {REGISTER: 120, "GET /api/v1/users/activation/{token}": 3},
    "status_counts": {"201": 118, "404": 3, "503": 2},
    "error_count": 2,
    "business_metrics": {
        "registrations": 100,
        "activations": 75,
        "mails_accepted": 98,
        "mails_dead": 1,
        "resends": 4,
    },
    "latencies": {REGISTER: {"count": 120, "p50": 241.5, "p95": 480.25, "p99": 812.0, "min": 236.1, "max": 1900.4}},
    "mail": {
        "queued": 2,
        "oldest_queued_seconds": 7,
        "time_to_accept": {"count": 98, "p50": 45.2, "p95": 120.0, "p99": 950.5},
    },
    "window_seconds": 3600,
    "workers": 2,
}
EMPTY: dict[str, Any] = {
    **METRICS,
    "request_counts": {},
    "status_counts": {},
    "latencies": {},
    "error_count": 0,
    "mail": {
        "queued": 0,
        "oldest_queued_seconds": 0,
        "time_to_accept": {"count": 0, "p50": None, "p95": None, "p99": None},
    },
}


@pytest.mark.parametrize("script", ["metrics.py", "smoke.py", "funnel.py"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:80a0", "http://[", "http://a..b", "ftp://here"])
def test_an_address_that_is_none_is_one_line(script: str, url: str) -> None:
    """Exit status 3 and what was typed, no traceback."""
    ended = subprocess.run(
        [sys.executable, OPS / script, "--url", url], capture_output=True, text=True, check=False, timeout=30
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (3, 1), ended.stderr
    assert url in ended.stderr


@pytest.fixture
def service() -> Iterator[RemoteService]:
    """Run a service with metrics."""
    with RemoteService({"GET /api/v1/metrics": [(200, copy.deepcopy(METRICS))]}) as running:
        yield running


def run(
    script: str, *arguments: str, url: str = "", send: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script as an operator does and return how it ended."""
    return subprocess.run(
        [sys.executable, str(OPS / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        input=send,
        env={"PATH": os.environ["PATH"], **({"VESTIBULE_URL": url} if url else {}), **environment},
    )


def test_one_reading_fits_80_columns_without_colour_and_shows_every_figure(service: RemoteService) -> None:
    """In a pipe there are tables of at most 80 columns without escape sequences."""
    shown = run("metrics.py", url=service.url)
    assert shown.returncode == 0
    assert "\x1b" not in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    for figure in ("242", "480", "812", "1,900", "120", "100", "75", "98", "950", "7 s", "2 workers", "2 errors"):
        assert figure in shown.stdout


def test_a_service_without_requests_is_shown_too() -> None:
    """Nothing counted yet is no error."""
    with RemoteService({"GET /api/v1/metrics": [(200, EMPTY)]}) as empty:
        shown = run("metrics.py", "--url", empty.url)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "no request yet" in shown.stdout


def test_json_is_the_services_own(service: RemoteService) -> None:
    """`--json` prints what came."""
    assert json.loads(run("metrics.py", "--json", "--url", service.url).stdout) == METRICS


def test_prometheus_is_the_services_own_text() -> None:
    """`--prometheus` prints /metrics as it came."""
    answers: dict[str, list[tuple[int, Any]]] = {
        "GET /api/v1/metrics": [(200, METRICS)],
        "GET /metrics": [(200, "vestibule_workers 2\n")],
    }
    with RemoteService(answers) as service:
        assert run("metrics.py", "--prometheus", url=service.url).stdout == "vestibule_workers 2\n"


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("p99>500ms", 1),
        ("p99>0.8s", 1),
        ("p99>1s", 0),
        ("errors>2", 0),
        ("errors >= 2", 1),
        ("error_rate>1%", 1),
        ("error_rate>5%", 0),
        ("queued<1", 0),
        ("oldest_queued_seconds>5s", 1),
        ("accept_p99>900", 1),
        ("activations<80", 1),
        ("workers==2", 1),
        ("p99>1.2.3", 2),
        ("p98>1", 2),
        ("rubbish", 2),
    ],
)
def test_fail_if_decides_the_exit_status(service: RemoteService, text: str, status: int) -> None:
    """1 when the condition holds, 0 when not, 2 with one line when it is none."""
    ended = run("metrics.py", "--json", "--fail-if", text, url=service.url)
    assert ended.returncode == status
    assert len(ended.stderr.splitlines()) == (status > 0)


def test_a_percentile_before_any_request_fails_nothing() -> None:
    """A figure that does not exist yet meets no condition."""
    with RemoteService({"GET /api/v1/metrics": [(200, EMPTY)]}) as empty:
        ended = run("metrics.py", "--json", "--fail-if", "p99>0", "--fail-if", "accept_p50<1", url=empty.url)
    assert ended.returncode == 0


@pytest.mark.parametrize("script", ["metrics.py", "funnel.py", "smoke.py"])
def test_no_answer_is_one_line_and_status_3(script: str) -> None:
    """Whatever is wrong on the other side, there is one line and no stack."""
    for url in ("http://127.0.0.1:23997", "ftp://nowhere", "http://"):
        ended = run(script, "--url", url)
        assert ended.returncode == 3
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, [1]), (503, {"error": "StoreUnavailable"}), (500, "oops")])
def test_an_answer_that_is_no_metrics_is_one_line(answer: tuple[int, Any]) -> None:
    """Another program at the URL, or a service in trouble, is told in one line."""
    with RemoteService({"GET /api/v1/metrics": [answer]}) as service:
        ended = run("metrics.py", url=service.url)
    assert ended.returncode == 3
    assert len(ended.stderr.splitlines()) == 1


def test_the_token_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path: Path) -> None:
    """The token travels as a Bearer; a refusal says what to set and not what was set."""
    secret = "tok-" + "s3cret"
    (tmp_path / "token").write_text(secret + "\n", encoding="utf-8")
    with RemoteService({"GET /api/v1/metrics": [(200, METRICS), (200, METRICS), (401, {"error": "x"})]}) as service:
        run("metrics.py", "--json", url=service.url, VESTIBULE_OPS_TOKEN=secret)
        run("metrics.py", "--json", url=service.url, VESTIBULE_OPS_TOKEN_FILE=str(tmp_path / "token"))
        refused = run("metrics.py", "--json", url=service.url, VESTIBULE_OPS_TOKEN=secret)
    assert [headers["Authorization"] for _, headers, _ in service.seen] == [f"Bearer {secret}"] * 3
    assert refused.returncode == 3
    assert secret not in refused.stderr
    assert "VESTIBULE_OPS_TOKEN" in refused.stderr


def test_watch_shows_reading_after_reading_until_interrupted() -> None:
    """In a pipe the readings follow one another, with the course of each figure; Ctrl-C ends it with status 0."""
    later = {**METRICS, "request_counts": {REGISTER: 220}}
    with RemoteService({"GET /api/v1/metrics": [(200, METRICS), (200, later)]}) as service:
        watching = subprocess.Popen(
            [sys.executable, str(OPS / "metrics.py"), "--watch", "--interval", "0.1", "--url", service.url],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        shown = ""
        for line in watching.stdout:
            shown += line
            if shown.count("mail p95 ms") > 2:
                break
        watching.send_signal(signal.SIGINT)
        watching.stdout.read()
        assert watching.wait(10) == 0
    assert "p95 ms         480.2  ██" in shown
    assert "activated %     75.0  ██" in shown
    assert "mail p95 ms    120.0  ██" in shown
    assert shown.count("requests/s") > 2


@pytest.mark.parametrize("script", ["metrics.py", "funnel.py", "smoke.py"])
def test_help_has_examples_and_exit_statuses(script: str) -> None:
    """`--help` shows how it is used."""
    text = run(script, "--help").stdout
    assert f"python ops/{script}" in text
    assert "exit status" in text


def test_funnel_shows_shares_of_registrations(service: RemoteService) -> None:
    """Each step has its count, its share and its times."""
    shown = run("funnel.py", url=service.url)
    assert shown.returncode == 0
    rows = {line.split()[0]: line.split() for line in shown.stdout.splitlines()[1:]}
    assert rows["registrations"][1:3] == ["100", "100.0%"]
    assert rows["activations"][1:3] == ["75", "75.0%"]
    assert rows["registrations"][-2:] == ["241.5", "480.2"]
    assert rows["mails_accepted"][-2:] == ["45.2", "120.0"]
    assert max(map(len, shown.stdout.splitlines())) <= 80


def test_funnel_over_a_time_counts_what_happened_in_it() -> None:
    """With `--over` the figures are the differences of two readings."""
    later = copy.deepcopy(METRICS)
    later["business_metrics"].update(registrations=110, activations=77)
    with RemoteService({"GET /api/v1/metrics": [(200, METRICS), (200, later)]}) as service:
        steps = json.loads(run("funnel.py", "--json", "--over", "0.01", url=service.url).stdout)
    found = {step["step"]: (step["count"], step["share"]) for step in steps}
    assert found["registrations"] == (10, 1.0)
    assert found["activations"] == (2, 0.2)


def test_funnel_without_registrations_has_no_shares() -> None:
    """Nothing is divided by zero."""
    none = {**EMPTY, "business_metrics": dict.fromkeys(METRICS["business_metrics"], 0)}
    with RemoteService({"GET /api/v1/metrics": [(200, none)]}) as service:
        assert run("funnel.py", url=service.url).returncode == 0


def canary_answers(**changed: list[tuple[int, Any]]) -> dict[str, list[tuple[int, Any]]]:
    """Return the answers of a healthy service with a catcher; the mail is there at the second look."""
    mail = {
        "id": "1",
        "to": "c@example.com",
        "subject": "s",
        "date": "d",
        "text": "Hello\r\n\r\n042042\r\n\r\nBye 1234567",
    }
    other = {**mail, "to": "x@example.com", "text": "999999"}
    return {
        "GET /api/v1/health": changed.get("health", [(200, {"status": "ok"})]),
        "POST /api/v1/users/register": changed.get("register", [(201, {"is_activated": False})]),
        "GET /dev/mail": changed.get("mail", [(200, {"mails": [other]}), (200, {"mails": [other, mail]})]),
        "POST /api/v1/users/activate": changed.get("activate", [(200, {"is_activated": True})]),
        "GET /api/v1/users/me": changed.get("me", [(200, {"is_activated": True})]),
    }


def test_smoke_walks_the_whole_way_and_times_each_step() -> None:
    """Registers, reads the code from the catcher, activates; five times and status 0."""
    with RemoteService(canary_answers()) as service:
        ended = run("smoke.py", "--email", "c@example.com", url=service.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split()[0] for line in ended.stdout.splitlines()[:5]] == [
        "health",
        "register",
        "mail",
        "activate",
        "me",
    ]
    sent = {line: body for line, _, body in service.seen}
    assert sent["POST /api/v1/users/activate"] == {"code": "042042"}
    assert sent["POST /api/v1/users/register"]["password"] not in ended.stdout


def test_smoke_walks_where_addresses_are_kept_secret() -> None:
    """Under ENUMERATION=strict a registration is answered with 202, which is as good."""
    with RemoteService(canary_answers(register=[(202, {"is_activated": False})])) as service:
        ended = run("smoke.py", "--email", "c@example.com", url=service.url)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_smoke_asks_for_the_code_where_mails_are_really_sent() -> None:
    """With `--ask` the code is typed and the catcher is left alone."""
    with RemoteService(canary_answers(mail=[(404, {"error": "NotFound"})])) as service:
        ended = run("smoke.py", "--ask", "--email", "c@example.com", url=service.url, send="123456\n")
    assert ended.returncode == 0
    assert {line: body for line, _, body in service.seen}["POST /api/v1/users/activate"] == {"code": "123456"}


@pytest.mark.parametrize(
    ("step", "answer"),
    [
        ("health", (200, {"status": "down"})),
        ("health", (503, {"status": "down", "checks": {"database": "down"}})),
        ("register", (429, {"error": "RateLimitExceeded"})),
        ("mail", (404, {"error": "NotFound"})),
        ("activate", (400, {"error": "InvalidActivationCode"})),
        ("me", (200, {"is_activated": False})),
    ],
)
def test_smoke_fails_with_one_line_that_names_the_step(step: str, answer: tuple[int, Any]) -> None:
    """A step that goes wrong ends the walk with status 1."""
    with RemoteService(canary_answers(**{step: [answer]})) as service:
        ended = run("smoke.py", "--email", "c@example.com", url=service.url)
    assert ended.returncode == 1
    assert step != "mail" or "POST /api/v1/users/register" not in {line for line, _, _ in service.seen}
    assert ended.stderr.startswith(f"smoke.py: {step}: ")
    assert len(ended.stderr.splitlines()) == 1
