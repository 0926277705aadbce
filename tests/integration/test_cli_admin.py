"""The operator's commands about mails and accounts, on a real database."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import UUID

import trio

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Stores

KEY = "ada@example.com"
# One process runs command after command: most of what a process costs is its imports.
PROGRAM = """
import json, sys
from service import cli
for sys.argv[1:] in json.loads(sys.stdin.read()):
    print("\\0", cli.main(), flush=True)
"""
COUNTS = "SELECT sum(registrations)::int, sum(activations)::int, sum(resends)::int FROM vestibule.business_counts"
NO_ACCOUNT, NONE_PENDING = (
    "vestibule: no account has this address\n",
    "vestibule: no pending account has this address\n",
)


async def test_mails_and_accounts_are_shown_and_changed(stores: Stores, database: str, data_dir: Path) -> None:
    """For people and as JSON, never with a code or a hash; what is done already is said in one line."""
    await stores.registered(KEY)
    mail = await stores.dead()
    known, unknown = str(mail.id), str(UUID(int=9))
    expected = {
        "mail list --state dead --since 1h": (0, rf"{known}  dead .*{KEY}  550 5.1.1 no such mailbox at RCPT\n"),
        "mail list --json": (0, rf'\[\n  {{\n    "id": "{known}",\n[^$]*"state": "dead"[^$]*\]\n'),
        "mail list --state queued": (0, "no mails\n"),
        "mail list --state nonsense": (2, "vestibule: .*\n"),
        f"mail show {known}": (0, rf"id +{known}\n[^$]*"),
        f"mail show {unknown}": (1, "vestibule: no mail has this id\n"),
        "mail replay --dead --dry-run": (0, "would queue 1 mail again\n"),
        f"mail replay {known} --json": (0, rf'{{\n  "dry_run": false,\n  "replayed": \[\n    "{known}"\n  \]\n}}\n'),
        "mail replay --dead": (0, "queued 0 mails again\n"),
        f"mail replay {known}": (1, "vestibule: no mail with this id is waited for: .*\n"),
        "user show Ada@Example.com --json": (
            0,
            rf'{{[^$]*"email": "{KEY}"[^$]*"activated_at": null,\n  "state": "queued"[^$]*"attempts_left": 5[^$]*}}\n',
        ),
        f"user resend {KEY}": (0, "a new code is on its way\n"),
        f"user activate {KEY}": (0, "activated\n"),
        f"user activate {KEY} ": (1, NONE_PENDING),
        f"user show {KEY}": (0, r"id +[^$]*state +activated\n[^$]*"),
        f"user delete {KEY}": (0, "deleted\n"),
        f"user delete {KEY} ": (1, NO_ACCOUNT),
        f"user show {KEY} ": (1, NO_ACCOUNT),
    }
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    done = await trio.run_process(
        [sys.executable, "-c", PROGRAM],
        env={**plain, "VESTIBULE_DATA_DIR": str(data_dir), "VESTIBULE_DATABASE_URL": database},
        stdin=json.dumps([line.split() for line in expected]).encode(),
        capture_stdout=True,
        stderr=subprocess.STDOUT,
    )
    said = re.findall(r"(.*?)\0 (\d)\n", done.stdout.decode(), re.DOTALL)
    for (line, (code, pattern)), (text, ended) in zip(expected.items(), said, strict=True):
        assert int(ended) == code, line
        assert re.fullmatch(pattern, text), (line, text)
    assert await stores.rows(COUNTS) == [(1, 1, 1)]
    assert await stores.rows("SELECT count(*) FROM vestibule.mails") == [(0,)]
