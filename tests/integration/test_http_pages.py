"""Pages for people, health and metrics; that they load nothing from another host is tested end to end."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from typing import TYPE_CHECKING

import anyio
import pytest

from actors.domain.errors import CodeExpired
from actors.metrics_ports import Business, MailFigures, Metrics
from service.embedded.mail_catcher import keep_mail
from service.http.problems import TABLE
from service.telemetry.exposition import OPENMETRICS, PLAIN
from tests.fakes.asgi import ask, basic
from tests.fakes.http_service import EMAIL, PASSWORD, FakeService, FixedReader, ScriptedHealth, metrics

if TYPE_CHECKING:
    from pathlib import Path

    from quart import Quart

    from service.http.health import Verdict
    from tests.fakes.asgi import Answer

USERS = "/api/v1/users"
HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
MAIL = (
    b"Subject: Your code <b>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=x\r\n\r\n"
    b"--x\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n012345\r\n<script>alert(1)</script>\r\n"
    b'--x\r\nContent-Type: text/html; charset=utf-8\r\n\r\n<p onclick="x">012345</p>\r\n--x--\r\n'
)


@pytest.fixture
def service() -> FakeService:
    """Return what the application talks to."""
    return FakeService()


@pytest.fixture
def app(service: FakeService, tmp_path: Path) -> Quart:
    """Return the application of a development machine on Trio."""
    return service.app(data_dir=tmp_path)


async def test_browsers_get_the_sign_up_page_and_programs_a_card(app: Quart) -> None:
    """`/` answers by Accept, and Vary says so; each input of the page has a label."""
    page = await ask(app, "GET", "/", **HTML)
    assert page.headers["content-type"].startswith("text/html")
    assert 'autocomplete="one-time-code"' in page.text
    labels = re.findall(r'<label for="(\w+)"', page.text)
    assert set(re.findall(r'<input id="(\w+)"', page.text)) == set(labels) == {"email", "password", "code"}
    for accept in ("*/*", "application/json", ""):
        card = await ask(app, "GET", "/", Accept=accept)
        assert card.json["links"]["registration"] == "/api/v1/users/register"
        assert card.headers["vary"] == page.headers["vary"] == "Accept"


@pytest.mark.parametrize("path", ["/", "/docs", "/problems/busy", "/ops", "/dev/mail"])
async def test_every_link_of_a_page_lies_under_the_path_of_public_url(
    service: FakeService, path: str, tmp_path: Path
) -> None:
    """With https://example.org/auth pages name `/auth/…` alone, and each address answers, with and without a proxy."""
    app = service.app(data_dir=tmp_path, public_url="https://example.org/auth")
    for asked in (path, f"/auth{path}"):
        page = await ask(app, "GET", asked, **HTML)
        assert page.status == 200
        assert not re.search(r"<script(?! src)|style=", page.text)
        assert "unsafe" not in page.headers["content-security-policy"]
        links = re.findall(r'(?:src|href|action)="([^"#:]+)"', page.text)
        assert links
        for link in links:
            assert link.startswith("/auth/")
            assert (await ask(app, "GET", link)).status == 200
    assert (await ask(app, "GET", "/auth", **HTML)).status == 200
    assert (await ask(app, "GET", "/authority", **HTML)).status == 404


async def test_every_address_in_json_lies_under_the_path_of_public_url(service: FakeService) -> None:
    """Status address, Location, links and the address for a resend."""
    app = service.app(public_url="https://example.org/auth")
    registered = await ask(app, "POST", f"{USERS}/register", {"email": EMAIL, "password": PASSWORD})
    assert registered.json["status_url"] == registered.headers["location"]
    assert registered.json["status_url"].startswith("/auth/api/v1/users/activation/")
    assert all(link.startswith("/auth/") for link in (await ask(app, "GET", "/")).json["links"].values())
    assert (await ask(app, "GET", "/openapi.json")).json["servers"] == [{"url": "/auth"}]
    service.signup.failure = CodeExpired()
    expired = await ask(app, "POST", f"{USERS}/activate", {"code": "012345"}, Authorization=basic(EMAIL, PASSWORD))
    assert expired.json["resend_url"] == "/auth/api/v1/users/resend"


async def test_static_files_are_only_ours(app: Quart) -> None:
    """A name that is none of our files is not found, whatever it means to a file system."""
    answer = await ask(app, "GET", "/static/style.css")
    assert answer.headers["content-type"] == "text/css; charset=utf-8"
    assert answer.headers["cache-control"].startswith("public")
    for name in ("app.py", "../app.py", "\0", "style.css/"):
        assert (await ask(app, "GET", f"/static/{name}")).status == 404


async def test_every_problem_and_every_call_is_explained(app: Quart) -> None:
    """The address in a problem's type leads to its explanation, and /docs shows what /openapi.json describes."""
    for slug in {problem.slug for problem in TABLE.values()}:
        text = unescape((await ask(app, "GET", f"/problems/{slug}")).text)
        assert all(problem.advice in text for problem in TABLE.values() if problem.slug == slug)
    assert (await ask(app, "GET", "/problems/nothing")).status == 404
    document, reader = (await ask(app, "GET", "/openapi.json")).json, (await ask(app, "GET", "/docs", **HTML)).text
    for path, calls in document["paths"].items():
        assert all(f"{method.upper()} {path}</code>" in reader for method in calls)


async def test_caught_mails_are_listed_and_shown_in_a_sandbox(app: Quart, tmp_path: Path) -> None:
    """Scripts read them as JSON; nothing of a mail is markup of the page, its HTML stays in a frame without scripts."""
    name = keep_mail(tmp_path / "mails", ["ada@example.com"], MAIL)
    (mail,) = (await ask(app, "GET", "/dev/mail")).json["mails"]
    assert (mail["id"], mail["to"], mail.keys()) == (name, "ada@example.com", {"id", "to", "subject", "date", "text"})
    assert "012345" in mail["text"].split()
    one, page = await ask(app, "GET", f"/dev/mail/{name}"), await ask(app, "GET", f"/dev/mail/{name}", **HTML)
    assert one.json == mail
    assert not [markup for markup in ("<script", "<b>", "<p onclick") if markup in page.text]
    assert '<iframe sandbox title="The mail as HTML" srcdoc="&lt;p onclick' in page.text
    assert "script-src" not in page.headers["content-security-policy"]
    assert (await ask(app, "GET", "/dev/mail/none")).status == 404
    assert (await ask(FakeService().app(mail_url="smtp://localhost:25"), "GET", "/dev/mail")).status == 404


@pytest.mark.parametrize(
    ("verdicts", "word", "status", "failing"),
    [
        ({}, "ok", 200, None),
        ({"redis": "down"}, "degraded", 200, None),
        ({"mail_queue": "degraded"}, "degraded", 200, None),
        ({"database": "down"}, "down", 503, ["database"]),
    ],
)
async def test_health_is_down_only_without_the_database(  # noqa: PLR0913, PLR0917 - one case's figures
    app: Quart, service: FakeService, verdicts: dict[str, Verdict], word: str, status: int, failing: list[str] | None
) -> None:
    """Whatever else fails, the service is degraded and ready; one that drains is not, and each of them lives."""
    service.health.verdicts, service.health.said = verdicts, ["Mind the gap."]
    answer, ready = await ask(app, "GET", "/api/v1/health"), await ask(app, "GET", "/readyz")
    body = answer.json
    assert (answer.status, ready.status, ready.json.get("failing")) == (status, status, failing)
    assert body.pop("version")
    checks = {"database": "ok", "redis": "ok", "mail_queue": "ok"} | verdicts
    assert body == {"status": word, "checks": checks, "notes": ["Mind the gap."]}
    service.health.draining = True
    drained = await ask(app, "GET", "/readyz")
    assert (drained.status, drained.code) == (503, "NotReady")
    assert drained.json["failing"] == ["draining", *(failing or [])]
    assert (await ask(app, "GET", "/livez")).status == 200


async def test_a_check_that_hangs_has_failed(service: FakeService, autojump_clock: object) -> None:
    """The answer comes although a check never does."""

    class Hanging(ScriptedHealth):
        async def database(self) -> Verdict:
            await anyio.sleep_forever()
            raise AssertionError

    service.health = Hanging()
    with anyio.fail_after(3):
        answer = await ask(service.app(), "GET", "/api/v1/health")
    assert answer.json["checks"]["database"] == "down"


async def measured(path: str, known: Metrics | None, accept: str = "*/*") -> Answer:
    """Read metrics."""
    service = FakeService()
    service.reader = FixedReader(known)
    return await ask(service.app(), "GET", path, Accept=accept)


async def test_the_json_has_exactly_the_fields_of_the_contract() -> None:
    """Every field is there with its unit, and none besides; what could not be read is said in notes."""
    percentiles = {"p50": pytest.approx(3.0, rel=0.01), **dict.fromkeys(("p95", "p99"), pytest.approx(30.0, rel=0.01))}
    body = (await measured("/api/v1/metrics", metrics())).json
    assert body == {
        "request_counts": {"GET /livez": 2, "POST /x": 1},
        "status_counts": {"200": 2, "503": 1},
        "error_count": 1,
        "business_metrics": {"registrations": 5, "activations": 4, "resends": 3, "mails_accepted": 2, "mails_dead": 1},
        "latencies": {"GET /livez": {"count": 2, **percentiles, "min": 3.0, "max": 30.0}},
        "mail": {
            "queued": 7,
            "oldest_queued_seconds": 13,
            "time_to_accept": {"count": 3, "p50": 10.0, "p95": 20.0, "p99": 30.123},
        },
        "window_seconds": 3600,
        "workers": 2,
        "notes": ["Redis is away."],
    }
    assert "notes" not in (await measured("/api/v1/metrics", replace(metrics(), notes=()))).json
    empty = (await measured("/api/v1/metrics", Metrics({}, {}, {}, Business(), MailFigures(), 1))).json
    assert empty["request_counts"] == empty["latencies"] == {}
    assert empty["mail"]["time_to_accept"] == {"count": 0, "p50": None, "p95": None, "p99": None}


@pytest.mark.parametrize(("accept", "media"), [("application/openmetrics-text", OPENMETRICS), ("*/*", PLAIN)])
async def test_scrapers_get_the_format_that_they_ask_for(accept: str, media: str) -> None:
    """OpenMetrics ends with its mark, and Vary says that the answer depends on Accept; no store is a problem."""
    answer = await measured("/metrics", metrics(), accept)
    assert (answer.status, answer.headers["content-type"], answer.headers["vary"]) == (200, media, "Accept")
    assert answer.body.endswith(b"# EOF\n") is (media == OPENMETRICS)
    assert (await measured("/metrics", None, accept)).code == "StoreUnavailable"
