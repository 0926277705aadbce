from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.fakes.remote_service import RemoteService

if TYPE_CHECKING:
    from collections.abc import Iterator

SCRIPT = Path(__file__).resolve().parents[2] / "ops" / "mail.py"
ID, OTHER = "0d3a6f1e-8f1c-4c53-9a3e-0c4f5be3c6aa", "11111111-8f1c-4c53-9a3e-0c4f5be3c6aa"
MAIL: dict[str, Any] = {
    "id": ID,
    "state": "dead",
    "kind": "code",
    "attempts": 3,
    "created_at": "2026-11-24T12:00:00.123456Z",
    "due_at": "2026-11-24T12:00:05Z",
    "accepted_at": None,
    "reason": "550 5.1.1 at RCPT",
    "to": "a…@example.com",
    "locale": "en",
}
LIST, REPLAY = "GET /api/v1/ops/mails", "POST /api/v1/ops/mails/replay"


@pytest.fixture
def service() -> Iterator[RemoteService]:
    """Run a service with one dead mail."""
    answers: dict[str, list[tuple[int, Any]]] = {
        LIST: [(200, {"mails": [MAIL]})],
        f"{LIST}?state=dead&since=2h&limit=5": [(200, {"mails": []})],
        f"{LIST}?state=lost": [
            (422, {"error": "ValidationError", "errors": [{"field": "state", "message": "must be"}]})
        ],
        f"{LIST}/{ID}": [(200, MAIL)],
        REPLAY: [(200, {"dry_run": False, "replayed": [ID]})],
    }
    with RemoteService(answers) as running:
        yield running


def run(service: RemoteService, *words: str) -> tuple[int, str, str]:
    """Run the script with a token; return its exit status, its output and what it complained about."""
    environment = {**os.environ, "VESTIBULE_URL": service.url, "VESTIBULE_OPS_TOKEN": "the token"}
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), *words], capture_output=True, text=True, check=False, timeout=30, env=environment
    )
    return ended.returncode, ended.stdout, ended.stderr


def test_mails_are_listed(service: RemoteService) -> None:
    """A line for each: id, state, attempts, time, recipient, reason; the token travels as a header."""
    line = f"{ID}  dead       3x  2026-11-24T12:00:00Z  a…@example.com  550 5.1.1 at RCPT\n"
    assert run(service, "list") == (0, line, "")
    assert service.seen[0][1]["Authorization"] == "Bearer the token"
    assert run(service, "list", "--state", "dead", "--since", "2h", "--limit", "5") == (0, "no mails\n", "")


def test_json_is_what_the_service_says(service: RemoteService) -> None:
    """Every command can print it."""
    assert json.loads(run(service, "--json", "list")[1]) == {"mails": [MAIL]}
    assert json.loads(run(service, "--json", "show", ID)[1]) == MAIL
    assert json.loads(run(service, "--json", "replay", ID)[1])["replayed"] == [ID]


def test_one_mail_is_shown(service: RemoteService) -> None:
    """A line for each of its fields; one that is not there is exit status 1 and one line."""
    status, shown, _ = run(service, "show", ID)
    assert status == 0
    assert "reason        550 5.1.1 at RCPT\n" in shown
    assert run(service, "show", OTHER) == (1, "", f"mail.py: there is no mail {OTHER}\n")


def test_mails_are_replayed(service: RemoteService) -> None:
    """By id, or all dead ones; a dry run says what would be; nothing to do is exit status 1."""
    assert run(service, "replay", ID) == (0, f"{ID}\nqueued 1 mail again\n", "")
    assert service.seen[-1][2] == {"ids": [ID], "dry_run": False}
    service.answers[REPLAY] = [(200, {"dry_run": True, "replayed": []})]
    assert run(service, "replay", "--dead", "--since", "2h", "--dry-run") == (1, "would queue 0 mails again\n", "")
    assert service.seen[-1][2] == {"dead": True, "since": "2h", "dry_run": True}


def test_a_refusal_is_one_line(service: RemoteService) -> None:
    """Exit status 3, and what the service says, of fields too; with the wrong token and without any, what to do."""
    wrong = f"mail.py: {service.url} answers 422 ValidationError: state must be\n"
    assert run(service, "list", "--state", "lost") == (3, "", wrong)
    service.answers[LIST] = [(401, {"error": "OpsTokenRequired"}), (403, {"error": "OpsTokenRequired"})]
    another = "has another operator's token than the one given: look at VESTIBULE_OPS_TOKEN"
    assert run(service, "list") == (3, "", f"mail.py: {service.url} {another}\n")
    service.answers[f"{LIST}/{OTHER}"] = [(429, {"error": "RateLimitExceeded", "retry_after": 9})]
    later = f"mail.py: {service.url} answers 429 RateLimitExceeded, again in 9 s\n"
    assert run(service, "show", OTHER) == (3, "", later)
    wanted = f"mail.py: {service.url} wants the operator's token: set VESTIBULE_OPS_TOKEN\n"
    assert run(service, "list") == (3, "", wanted)


def test_options_may_stand_behind_the_command(service: RemoteService) -> None:
    """`list --json` is `--json list`, as with `vestibule mail`."""
    assert run(service, "list", "--json") == run(service, "--json", "list")
    assert run(service, "show", ID, "--url", service.url, "--token", "another")[0] == 0
    assert service.seen[-1][1]["Authorization"] == "Bearer another"


def test_which_mails_must_be_said(service: RemoteService) -> None:
    """A replay of nothing in particular is refused before anything is asked."""
    status, _, complaint = run(service, "replay")
    assert (status, service.seen) == (2, [])
    assert "--dead" in complaint
