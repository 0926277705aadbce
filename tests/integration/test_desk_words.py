from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from uuid import uuid4

import anyio
import pytest

VESTIBULE = str(Path(sys.executable).with_name("vestibule"))


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
async def test_a_mail_that_nobody_waits_for_is_refused_in_one_line(
    database_url: str, tmp_path: Path, more: list[str]
) -> None:
    """A replay that queues nothing says why it may be so, instead of counting to zero."""
    environment = os.environ | {"VESTIBULE_DATABASE_URL": database_url, "VESTIBULE_DATA_DIR": str(tmp_path)}
    replay = [VESTIBULE, "mail", "replay", str(uuid4()), *more]
    ended = await anyio.run_process(replay, env=environment, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.count(b"\n")) == (1, b"", 1)
    assert ended.stderr.startswith(b"vestibule: no mail with this id is waited for")
    told = await anyio.run_process([*replay, "--json"], env=environment, check=False)
    assert (told.returncode, json.loads(told.stdout)["replayed"]) == (1, [])


async def test_a_replay_of_all_dead_ones_counts_them(database_url: str, tmp_path: Path) -> None:
    """None is as good a number as any."""
    environment = os.environ | {"VESTIBULE_DATABASE_URL": database_url, "VESTIBULE_DATA_DIR": str(tmp_path)}
    ended = await anyio.run_process([VESTIBULE, "mail", "replay", "--dead"], env=environment)
    assert ended.stdout == b"queued 0 mails again\n"
