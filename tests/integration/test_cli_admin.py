"""The operator's commands about mails and accounts, on a real database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING
from uuid import uuid4

import trio

from actors.domain.mail import Outcome, Result

if TYPE_CHECKING:
    from pathlib import Path

    from tests.integration.conftest import Stores

KEY = "ada@example.com"


async def vestibule(data_dir: Path, url: str, *words: str) -> tuple[int, str]:
    """Run a command on this database; return the exit code and what it wrote."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("VESTIBULE_")}
    done = await trio.run_process(
        [sys.executable, "-m", "service.cli", *words],
        env={**plain, "VESTIBULE_DATA_DIR": str(data_dir), "VESTIBULE_DATABASE_URL": url},
        capture_stdout=True,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return done.returncode, done.stdout.decode()


async def test_mails_are_listed_shown_and_replayed(stores: Stores, database: str, data_dir: Path) -> None:
    """For people and as JSON, and never with a code; a replay can be tried first."""
    await stores.registered(KEY)
    mail = await stores.claimed()
    await stores.queue.settle([(mail, Result(Outcome.DEAD, "550 5.1.1 no such mailbox at RCPT"))])

    async def run(*words: str) -> tuple[int, str]:
        return await vestibule(data_dir, database, "mail", *words)

    code, listed = await run("list", "--state", "dead", "--since", "1h")
    assert code == 0
    assert all(word in listed for word in (str(mail.id), "dead", KEY, "550 5.1.1"))
    [entry] = json.loads((await run("list", "--json"))[1])
    assert (entry["id"], entry["state"]) == (str(mail.id), "dead")
    assert (await run("list", "--state", "queued"))[1] == "no mails\n"
    code, said = await run("list", "--state", "nonsense")
    assert (code, said.count("\n")) == (2, 1)
    assert (await run("show", str(mail.id)))[1].startswith("id ")
    assert await run("show", str(uuid4())) == (1, "vestibule: no mail has this id\n")
    assert await run("replay", "--dead", "--dry-run") == (0, "would queue 1 mail again\n")
    assert await run("replay", str(mail.id)) == (0, "queued 1 mail again\n")
    assert await run("replay", "--dead") == (0, "queued 0 mails again\n")
    assert (await run("replay", str(mail.id)))[0] == 1


async def test_an_account_is_shown_resent_activated_and_deleted(stores: Stores, database: str, data_dir: Path) -> None:
    """Each once; a second time the line says why nothing is done."""
    await stores.registered(KEY)

    async def run(*words: str) -> tuple[int, str]:
        return await vestibule(data_dir, database, "user", *words)

    shown = json.loads((await run("show", "Ada@Example.com", "--json"))[1])
    assert (shown["email"], shown["state"], shown["attempts_left"], shown["activated_at"]) == (KEY, "queued", 5, None)
    assert not any(word in str(shown) for word in ("hash", "$2b$"))
    assert await run("resend", KEY) == (0, "a new code is on its way\n")
    assert await run("activate", KEY) == (0, "activated\n")
    assert await run("activate", KEY) == (1, "vestibule: no pending account has this address\n")
    assert "activated" in (await run("show", KEY))[1]
    assert await run("delete", KEY) == (0, "deleted\n")
    assert await run("delete", KEY) == (1, "vestibule: no account has this address\n")
    assert await run("show", KEY) == (1, "vestibule: no account has this address\n")
