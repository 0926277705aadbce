from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

SCRIPTS = sorted((Path(__file__).resolve().parents[2] / "ops" / "sql").glob("*.sql"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_a_query_for_operators_runs_read_only_and_shows_no_address(script: Path, database_url: str) -> None:
    """Each file is one statement with a comment that says what it answers, changes nothing and names no secret."""
    text = script.read_text(encoding="utf-8")
    assert text.startswith("-- ")
    assert text.count(";") == 1
    assert not {"email", "email_key", "password_hash"} & set(text.replace(",", " ").split())
    with psycopg.connect(database_url) as connection:
        connection.read_only = True
        cursor = connection.execute(text.encode())
        assert cursor.description
