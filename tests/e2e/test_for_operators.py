from __future__ import annotations

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pytest_bdd import parsers, scenarios, then, when

from tests.e2e.world import OPS_TOKEN
from tests.servers.waiting import wait_for

if TYPE_CHECKING:
    from tests.e2e.conftest import Story

HTML = "text/html,application/xhtml+xml,*/*;q=0.8"
WAYS = {
    "from this machine": {},
    "through a proxy": {"X_Forwarded_For": "198.51.100.7"},
    "by the name of another host": {"Host": "evil.example"},
    "with the token": {"Authorization": f"Bearer {OPS_TOKEN}"},
    "with a wrong one": {"Authorization": "Bearer another-token-altogether"},
}
LOADED = re.compile(rb"""<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=["']([^"']+)|@import|url\(""")

scenarios("features/for_operators.feature")


@when(parsers.re(r'somebody opens "(?P<path>[^"]+)"$'))
def open_path(story: Story, path: str) -> None:
    """Ask plainly."""
    story.answers.append(story.place.client().get(path))


@when(parsers.re(r'somebody opens "(?P<path>[^"]+)" (?P<how>(from|through|by|with) .+)$'))
def open_path_somehow(story: Story, path: str, how: str) -> None:
    """Ask with the headers of the way."""
    story.answers.append(story.place.client().get(path, **WAYS[how]))


@when(parsers.parse("somebody guesses at the token {times:d} times"))
def guess(story: Story, times: int) -> None:
    """Send wrong tokens from one machine, to one page and another; all but the last are only wrong."""
    machine = story.place.client()
    for number in range(times):
        path = ("/metrics", "/api/v1/metrics")[number % 2]
        story.answers.append(machine.get(path, Authorization=f"Bearer a-guess-number-{number}"))
    assert {answer.outcome for answer in story.answers[:-1]} == {"401 OpsTokenRequired"}


@when(parsers.parse('a browser opens "{path}"'))
def open_in_browser(story: Story, path: str) -> None:
    """Ask for a page."""
    story.answers.append(story.place.client().get(path, Accept=HTML))


@when(parsers.parse('a program opens "{path}"'))
def open_by_program(story: Story, path: str) -> None:
    """Ask for JSON."""
    story.answers.append(story.place.client().get(path, Accept="application/json"))


@when(parsers.parse('somebody sends {method} to "{path}"'))
def send(story: Story, method: str, path: str) -> None:
    """Send the bytes of a request that a client library might not send."""
    request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    story.answers.append(story.place.client().raw(request.encode()))


@then("it says that everything is well")
def all_well(story: Story) -> None:
    """Compare the whole body."""
    assert story.answer.json() | {"notes": []} == {
        "status": "ok",
        "version": version("vestibule"),
        "checks": {"database": "ok", "redis": "ok", "mail_queue": "ok"},
        "notes": [],
    }


@then("it is a page that loads nothing from another host")
def page_is_self_contained(story: Story) -> None:
    """Look at whatever a browser would load."""
    assert (story.answer.header("Content-Type") or "").startswith("text/html")
    loaded = [match[1] for match in LOADED.finditer(story.answer.body) if match[1] != b"data:,"]
    assert all(target is not None and re.match(rb"/[^/]", target) for target in loaded), loaded
    for target in loaded:
        assert story.place.client().get(target.decode()).status == 200
    assert "http" not in (story.answer.header("Content-Security-Policy") or "")


@then("it is a card with links that work")
def card(story: Story) -> None:
    """Follow the links; the registration's answers POST only."""
    view = story.answer.json()
    assert (view["name"], view["code_digits"]) == ("vestibule", 10)
    statuses = {name: story.place.client().get(path).status for name, path in view["links"].items()}
    assert statuses == {"registration": 405, "health": 200, "description": 200, "documentation": 200}


@then(parsers.parse("the metrics count it within {seconds:d} seconds"))
def metrics_count(story: Story, seconds: int) -> None:
    """Compare with the metrics before another activation; a service that has just started shows its workers as fast."""

    def metrics() -> Any:  # noqa: ANN401 - JSON
        return story.place.client().get("/api/v1/metrics").json()

    def activations() -> int:
        return int(metrics()["business_metrics"]["activations"])

    before = activations()
    person = story.place.person().registered()
    assert person.activate(person.code()).status == 200
    wait_for(lambda: activations() >= before + 1, "the activation is counted", float(seconds))
    wait_for(lambda: metrics()["workers"] == 2, "both workers are counted", float(seconds))
    assert metrics()["error_count"] == 0
