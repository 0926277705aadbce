from __future__ import annotations

import base64
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from ops.traces import Collector, Span
from tests.faults.under_test import patience, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.servers.smtp import SmtpServer

VESTIBULE = Path(sys.executable).with_name("vestibule")
KEYS = "k1:" + base64.b64encode(b"1" * 32).decode()
EMAIL, PASSWORD = "ada@example.com", "correct horse battery"
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = {"Content-Type": "application/json", "traceparent": f"00-{TRACE}-{CALLER}-01"}
FLUSH_SECONDS = 2.0


class Service:
    """An API of one worker and a mail worker, each its own process, that send their traces to an endpoint."""

    def __init__(self, folder: Path, port: int, urls: dict[str, str], variables: dict[str, str]) -> None:
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("VESTIBULE_", "OTEL_"))}
        own = {"DATA_DIR": str(folder), "BIND": f"127.0.0.1:{port}", "WORKERS": "1", "CODE_KEYS": KEYS}
        quick = {"BCRYPT_COST": "4", "ALLOW_WEAK_HASH": "1", "REGISTER_LIMIT": "off"}
        self._environment = plain | variables | {f"VESTIBULE_{k}": v for k, v in {**own, **quick, **urls}.items()}
        self._log = folder / "log"
        self.port = port
        self.processes = [self._start("serve"), self._start("worker")]

    def _start(self, command: str) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen([VESTIBULE, command], env=self._environment, stdout=log, stderr=log)

    def said(self) -> str:
        """Return what both have logged."""
        return self._log.read_text(encoding="utf-8")

    def lines(self, message: str) -> list[dict[str, Any]]:
        """Return the log lines with this message."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{")]
        return [line for line in lines if line["message"] == message]

    def wait_ready(self) -> None:
        """Return once both work."""
        wait_for(lambda: self._up() or any(one.poll() is not None for one in self.processes), "both are ready", 30)
        assert self._up(), self.said()

    def _up(self) -> bool:
        return "serves on" in self.said() and bool(self.lines("mail worker started"))

    def register(self, email: str) -> int:
        """Register an account; return the status."""
        body = json.dumps({"email": email, "password": PASSWORD}).encode()
        return self.ask("POST", "/api/v1/users/register", body)

    def ask(self, method: str, path: str, body: bytes | None = None) -> int:
        """Ask over a new connection, as a part of the caller's trace; return the status."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, body, HEADERS)
            return connection.getresponse().status
        finally:
            connection.close()

    def stop(self) -> list[int]:
        """End both in order and return their exit codes."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        return [process.wait(30) for process in self.processes]


@contextmanager
def running(folder: Path, port: int, urls: dict[str, str], **variables: str) -> Iterator[Service]:
    """Run the service around the body; nothing is left of it."""
    service = Service(folder, port, urls, variables)
    try:
        service.wait_ready()
        yield service
    finally:
        for process in service.processes:
            process.kill()
            process.wait()


@pytest.fixture
def urls(database_url: str, redis_url: str, smtp_catcher: SmtpServer) -> dict[str, str]:
    """Return where the servers are."""
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "MAIL_URL": smtp_catcher.url}


@pytest.mark.parametrize(("loop", "port"), [("uvloop", 29510), ("trio", 29511)])
def test_one_trace_runs_from_the_request_to_the_250(
    loop: str, port: int, urls: dict[str, str], smtp_catcher: SmtpServer, data_dir: Path
) -> None:
    """Two processes, one trace: the request, its hash and statement, a refused send, the retry, the 250.

    All of it is exported at the end of the processes at the latest; the row and the log lines name the same trace.
    """
    spans: list[Span] = []
    smtp_catcher.answer("451 4.3.0 later", at="DATA")
    with Collector(0, spans.extend) as collector:
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}"}
        with running(data_dir, port, {**urls, "LOOP": loop}, **endpoint, OTEL_BSP_SCHEDULE_DELAY="3600000") as service:
            assert service.register(EMAIL) == 201
            smtp_catcher.wait_for(1)
            assert service.stop() == [0, 0], service.said()
        logged = [service.lines(message)[-1] for message in ("request", "mail deferred", "mail accepted")]
    check_tree([span for span in spans if span.trace == TRACE])
    assert [line["trace_id"] for line in logged] == [TRACE] * 3
    with psycopg.connect(urls["DATABASE_URL"]) as connection:
        kept = connection.execute("SELECT traceparent FROM mails").fetchone()
    [producer] = [span for span in spans if span.kind == "producer"]
    assert kept is not None
    assert re.fullmatch(f"00-{TRACE}-{producer.id}-0[13]", kept[0])
    told = repr(spans)
    assert not [secret for secret in (EMAIL, "example.com", PASSWORD, "127.0.0.1") if secret in told]


def check_tree(spans: list[Span]) -> None:
    """Hold a trace to what a registration with one retry is made of."""
    [server] = [span for span in spans if span.kind == "server"]
    assert (server.name, server.parent) == ("POST /api/v1/users/register", CALLER)
    assert server.attributes["http.response.status_code"] == 201
    inside = [span for span in spans if span.parent == server.id]
    assert {"RateLimiter Admit", "PasswordHasher Hash", "UserRegistry Register"} <= {span.name for span in inside}
    [producer] = [span for span in inside if span.kind == "producer"]
    [statement] = [span for span in spans if span.name == "UserRegistry batch" and span.parent == producer.id]
    assert producer.start <= statement.start < statement.end <= producer.end
    deliveries = sorted((span for span in spans if span.kind == "consumer"), key=lambda span: span.start)
    assert [span.parent for span in deliveries] == [producer.id] * 2
    assert {span.process.partition(".")[0] for span in deliveries} == {"mail"}
    shown = ("vestibule.mail.attempt", "vestibule.outcome", "vestibule.mail.reply_code")
    assert [tuple(span.attributes[name] for name in shown) for span in deliveries] == [
        (1, "deferred", 451),
        (2, "accepted", 250),
    ]
    assert [span.failed for span in deliveries] == [True, False]
    for delivery in deliveries:
        names = [span.name for span in sorted(spans, key=lambda span: span.start) if span.parent == delivery.id]
        assert names[:2] == ["claim", "smtp send"]


@pytest.mark.parametrize(("collector", "port"), [("refuses", 29512), ("is silent", 29513)])
def test_a_dead_collector_costs_spans_and_nothing_else(
    collector: str, port: int, urls: dict[str, str], smtp_catcher: SmtpServer, data_dir: Path
) -> None:
    """Requests are answered, mails leave, each process tells it once, and the end is not held up."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if collector == "is silent":
            silent.listen()
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{silent.getsockname()[1]}"}
        hurry = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
        with running(data_dir, port, urls, **endpoint, **hurry) as service:
            for number in range(20):
                assert service.register(f"user{number}@example.com") == 201
            smtp_catcher.wait_for(20)
            wait_for(lambda: len(lost(service)) == 2, "both have told of it", 10)
            begun = time.monotonic()
            assert service.stop() == [0, 0], service.said()
        assert time.monotonic() - begun < patience(FLUSH_SECONDS + 3)
        assert max(line["ms"] for line in service.lines("request")) < patience(1.0) * 1000
        assert len(lost(service)) == 2


def lost(service: Service) -> list[dict[str, Any]]:
    """Return the lines that tell of lost spans."""
    return service.lines("the collector does not take the traces; spans are lost until it does")


def test_a_collector_that_comes_back_is_told_once(urls: dict[str, str], data_dir: Path) -> None:
    """An outage is two lines, its beginning and its end, and later spans arrive."""
    spans: list[Span] = []
    with Collector(0, spans.extend) as collector:
        collector.status = 400  # a refusal that is not worth a repeat
        endpoint = {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": f"http://127.0.0.1:{collector.port}/v1/traces"}
        hurry = {"OTEL_BSP_SCHEDULE_DELAY": "50", "OTEL_SERVICE_NAME": "sign-up"}
        with running(data_dir, 29514, urls, **endpoint, **hurry) as service:
            wait_for(lambda: service.ask("GET", "/livez") and lost(service), "the loss is told")
            collector.status = 200
            wait_for(lambda: service.ask("GET", "/livez") and spans, "spans arrive")
            wait_for(lambda: service.lines("the collector takes the traces again"), "that is told")
            assert service.stop() == [0, 0]
        assert len(lost(service)) == 1
