"""The scripts of ops/, run as an operator does, at a service that answers what a test tells it."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

OPS = Path(__file__).resolve().parents[2] / "ops"
READING, REGISTER = "GET /api/v1/metrics", "POST /api/v1/users/register"
BUSINESS = {"registrations": 100, "activations": 75, "mails_accepted": 98, "mails_dead": 1, "resends": 4}
METRICS: dict[str, Any] = {
    "request_counts": {REGISTER: 120, "GET /api/v1/users/activation/{token}": 3},
    "status_counts": {"201": 118, "404": 3, "503": 2},
    "error_count": 2,
    "business_metrics": BUSINESS,
    "latencies": {REGISTER: {"count": 120, "p50": 241.5, "p95": 480.25, "p99": 812.0, "min": 236.1, "max": 1900.4}},
    "mail": {
        "queued": 2,
        "oldest_queued_seconds": 7,
        "time_to_accept": {"count": 98, "p50": 45.2, "p95": 120.0, "p99": 950.5},
    },
    "window_seconds": 3600,
    "workers": 2,
}
NO_MAIL = {
    "queued": 0,
    "oldest_queued_seconds": 0,
    "time_to_accept": dict.fromkeys(("p50", "p95", "p99")) | {"count": 0},
}
EMPTY: dict[str, Any] = {
    **METRICS,
    **{name: {} for name in ("request_counts", "status_counts", "latencies")},
    "business_metrics": dict.fromkeys(BUSINESS, 0),
    "error_count": 0,
    "mail": NO_MAIL,
}


class Service:
    """Answers `METHOD /path` with the status and the JSON (or text) of `answers`, in turn, the last one for ever.

    `seen` holds what came: the line, the headers and the body.
    """

    def __init__(self, answers: dict[str, list[tuple[int, Any]]]) -> None:
        self.answers = answers
        self.seen: list[tuple[str, dict[str, str], Any]] = []
        self.url = ""

    def answer(self, line: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        """Note what came and return the next answer."""
        self.seen.append((line, headers, json.loads(body) if body else None))
        left = self.answers.get(line, [(404, {"error": "NotFound"})])
        status, content = left.pop(0) if len(left) > 1 else left[0]
        return status, content.encode() if isinstance(content, str) else json.dumps(content).encode()


@contextmanager
def serving(**answers: list[tuple[int, Any]]) -> Iterator[Service]:
    """Serve around the body: `answers` by what the scripts ask for, else those of a healthy service with a catcher."""
    text = "Hello\r\n\r\n042042\r\n\r\nBye 1234567"
    mail = {"id": "1", "to": "c@example.com", "subject": "s", "date": "d", "text": text}
    other = {**mail, "to": "x@example.com", "text": "999999"}
    service = Service(
        {
            READING: answers.get("metrics", [(200, METRICS)]),
            "GET /metrics": [(200, "vestibule_workers 2\n")],
            "GET /api/v1/health": answers.get("health", [(200, {"status": "ok"})]),
            REGISTER: answers.get("register", [(201, {"is_activated": False})]),
            "GET /dev/mail": answers.get("mail", [(200, {"mails": [other]}), (200, {"mails": [other, mail]})]),
            "POST /api/v1/users/activate": answers.get("activate", [(200, {"is_activated": True})]),
            "GET /api/v1/users/me": answers.get("me", [(200, {"is_activated": True})]),
        }
    )

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            status, data = service.answer(f"{self.command} {self.path}", dict(self.headers), body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        service.url = f"http://127.0.0.1:{server.server_port}"
        yield service
        server.shutdown()


@pytest.fixture
def service() -> Iterator[Service]:
    """Run a healthy service."""
    with serving() as running:
        yield running


class Ended(NamedTuple):
    """How a script ended."""

    status: int
    out: str
    err: str


def run(url: str, script: str, *words: str, send: str = "", **variables: str) -> Ended:
    """Run a script with a token."""
    environment = {"PATH": os.environ["PATH"], "VESTIBULE_URL": url, "VESTIBULE_OPS_TOKEN": "the token", **variables}
    command = [sys.executable, str(OPS / script), *words]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, input=send, env=environment
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


# -- all of them


NOWHERE = ("http://127.0.0.1:80a0", "http://[", "http://a..b", "ftp://here", "http://", "http://127.0.0.1:23997")


@pytest.mark.parametrize(
    ("script", "url"),
    [*[("metrics.py", url) for url in NOWHERE], ("funnel.py", NOWHERE[0]), ("smoke.py", NOWHERE[-1])],
)
def test_no_answer_is_one_line_and_status_3(script: str, url: str) -> None:
    """What was typed is named, and there is no traceback."""
    ended = run("", script, "--url", url)
    assert (ended.status, ended.err.count("\n")) == (3, 1), ended
    assert url in ended.err


@pytest.mark.parametrize("script", ["metrics.py", "funnel.py", "smoke.py"])
def test_help_has_examples_and_exit_statuses(script: str) -> None:
    """`--help` shows how it is used."""
    text = run("", script, "--help").out
    assert f"python ops/{script}" in text
    assert "exit status" in text


@pytest.mark.parametrize("answer", [(200, "<html>"), (200, [1]), (503, {"error": "StoreUnavailable"}), (500, "oops")])
def test_an_answer_that_is_no_metrics_is_one_line(answer: tuple[int, Any]) -> None:
    """Another program at the URL, or a service in trouble, is told in one line."""
    with serving(metrics=[answer]) as service:
        ended = run(service.url, "metrics.py")
    assert (ended.status, ended.err.count("\n")) == (3, 1), ended


def test_the_token_comes_from_the_environment_or_a_file_and_is_never_shown(tmp_path: Path) -> None:
    """The token travels as a Bearer; a refusal says what to set and not what was set."""
    (tmp_path / "token").write_text("s3cret\n", encoding="utf-8")
    with serving(metrics=[(200, METRICS), (200, METRICS), (401, {"error": "x"})]) as service:
        run(service.url, "metrics.py", "--json", VESTIBULE_OPS_TOKEN="s3cret")
        run(
            service.url,
            "metrics.py",
            "--json",
            VESTIBULE_OPS_TOKEN="",
            VESTIBULE_OPS_TOKEN_FILE=str(tmp_path / "token"),
        )
        refused = run(service.url, "metrics.py", "--json", VESTIBULE_OPS_TOKEN="s3cret")
    assert [headers["Authorization"] for _, headers, _ in service.seen] == ["Bearer s3cret"] * 3
    assert (refused.status, "s3cret" in refused.err, "VESTIBULE_OPS_TOKEN" in refused.err) == (3, False, True)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            (401, {"error": "OpsTokenRequired"}),
            "has another operator's token than the one given: look at VESTIBULE_OPS_TOKEN",
        ),
        ((403, {"error": "OpsTokenRequired"}), "wants the operator's token: set VESTIBULE_OPS_TOKEN"),
        ((429, {"error": "RateLimitExceeded", "retry_after": 9}), "answers 429 RateLimitExceeded, again in 9 s"),
    ],
)
def test_a_refusal_is_one_line(answer: tuple[int, Any], said: str) -> None:
    """Exit status 3, and what the service says; with the wrong token and without any, what to do."""
    with serving(metrics=[answer]) as service:
        assert run(service.url, "metrics.py") == (3, "", f"metrics.py: {service.url} {said}\n")


# -- metrics.py


def test_one_reading_fits_80_columns_without_colour_and_shows_every_figure(service: Service) -> None:
    """In a pipe there are tables of at most 80 columns without escape sequences."""
    shown = run(service.url, "metrics.py")
    assert (shown.status, "\x1b" in shown.out) == (0, False)
    assert max(map(len, shown.out.splitlines())) <= 80
    for figure in ("242", "480", "812", "1,900", "120", "100", "75", "98", "950", "7 s", "2 workers", "2 errors"):
        assert figure in shown.out


def test_machines_get_the_services_own_text(service: Service) -> None:
    """`--json` and `--prometheus` print what came."""
    assert json.loads(run(service.url, "metrics.py", "--json").out) == METRICS
    assert run(service.url, "metrics.py", "--prometheus").out == "vestibule_workers 2\n"


HOLD = ["p99>500ms", "p99>0.8s", "errors >= 2", "error_rate>1%", "oldest_queued_seconds>5s", "accept_p99>900"]
HOLD += ["activations<80", "workers==2"]
DO_NOT_HOLD = ["p99>1s", "errors>2", "error_rate>5%", "queued<1"]


def test_fail_if_decides_the_exit_status(service: Service) -> None:
    """1 when a condition holds, with a line for each that does, and 0 when none does."""
    wanted = [word for text in (*HOLD, *DO_NOT_HOLD) for word in ("--fail-if", text)]
    ended = run(service.url, "metrics.py", "--json", *wanted)
    assert (ended.status, [line.split(": ")[1] for line in ended.err.splitlines()]) == (1, HOLD)
    ended = run(service.url, "metrics.py", "--json", *wanted[2 * len(HOLD) :])
    assert (ended.status, ended.err) == (0, "")


@pytest.mark.parametrize("text", ["p99>1.2.3", "p98>1", "rubbish"])
def test_what_is_no_condition_is_wrong_usage(service: Service, text: str) -> None:
    """Status 2 and one line, before anything is asked."""
    ended = run(service.url, "metrics.py", "--fail-if", text)
    assert (ended.status, ended.err.count("\n"), service.seen) == (2, 1, [])


def test_a_service_without_requests_is_shown_too() -> None:
    """Nothing counted yet is no error, a percentile that does not exist meets no condition, and no share is made."""
    with serving(metrics=[(200, EMPTY)]) as empty:
        shown = run(empty.url, "metrics.py", "--fail-if", "p99>0", "--fail-if", "accept_p50<1")
        assert run(empty.url, "funnel.py").status == 0
    assert (shown.status, shown.err, "no request yet" in shown.out) == (0, "", True)


def test_watch_shows_reading_after_reading_until_interrupted() -> None:
    """In a pipe the readings follow one another, with the course of each figure; Ctrl-C ends it with status 0."""
    later = {**METRICS, "request_counts": {REGISTER: 220}}
    with serving(metrics=[(200, METRICS), (200, later)]) as service:
        command = [sys.executable, str(OPS / "metrics.py"), "--watch", "--interval", "0.1", "--url", service.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            shown = ""
            for line in watching.stdout or ():
                shown += line
                if shown.count("mail p95 ms") > 2:
                    break
            watching.send_signal(signal.SIGINT)
        assert watching.returncode == 0
    for course in ("p95 ms         480.2  ██", "activated %     75.0  ██", "mail p95 ms    120.0  ██", "requests/s"):
        assert course in shown


# -- funnel.py


def test_funnel_shows_shares_of_registrations(service: Service) -> None:
    """Each step has its count, its share and its times."""
    shown = run(service.url, "funnel.py")
    rows = {line.split()[0]: line.split()[1:] for line in shown.out.splitlines()[1:]}
    assert rows["activations"][:2] == ["75", "75.0%"]
    assert [*rows["registrations"][:2], *rows["registrations"][-2:]] == ["100", "100.0%", "241.5", "480.2"]
    assert rows["mails_accepted"][-2:] == ["45.2", "120.0"]
    assert (shown.status, max(map(len, shown.out.splitlines())) <= 80) == (0, True)


def test_funnel_over_a_time_counts_what_happened_in_it() -> None:
    """With `--over` the figures are the differences of two readings."""
    later = copy.deepcopy(METRICS)
    later["business_metrics"].update(registrations=110, activations=77)
    with serving(metrics=[(200, METRICS), (200, later)]) as service:
        steps = json.loads(run(service.url, "funnel.py", "--json", "--over", "0.01").out)
    found = {step["step"]: (step["count"], step["share"]) for step in steps}
    assert (found["registrations"], found["activations"]) == ((10, 1.0), (2, 0.2))


# -- smoke.py


@pytest.mark.parametrize(
    ("answers", "words", "code"),
    [
        ({}, [], "042042"),
        ({"register": [(202, {})]}, [], "042042"),  # ENUMERATION=strict
        ({"mail": [(404, {"error": "NotFound"})]}, ["--ask"], "123456"),
    ],
    ids=["open", "strict", "mails are really sent"],
)
def test_smoke_walks_the_whole_way_and_times_each_step(answers: dict[str, Any], words: list[str], code: str) -> None:
    """Registers, reads the code from the catcher or asks for it, activates; five times and status 0."""
    with serving(**answers) as service:
        ended = run(service.url, "smoke.py", "--email", "c@example.com", *words, send="123456\n")
    sent = {line: body for line, _, body in service.seen}
    assert (ended.status, sent["POST /api/v1/users/activate"]) == (0, {"code": code})
    assert sent[REGISTER]["password"] not in ended.out
    if not words:
        steps = [line.split()[0] for line in ended.out.splitlines()[:5]]
        assert steps == ["health", "register", "mail", "activate", "me"]


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
    """A step that goes wrong ends the walk with status 1; without a catcher nobody is registered."""
    with serving(**{step: [answer]}) as service:
        ended = run(service.url, "smoke.py", "--email", "c@example.com")
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith(f"smoke.py: {step}: ")
    assert step != "mail" or REGISTER not in {line for line, _, _ in service.seen}
