"""Password hashes on threads, and the list of common passwords."""

from __future__ import annotations

import subprocess
import sys

import bcrypt
import pytest
from loguru import logger

from service.passwords import Bcrypt, common_passwords

COST = 4
SECRET = "pässword".encode()


async def test_hashes_and_checks() -> None:
    """Hashes are plain `$2b$` bcrypt with a salt of their own, which any product can check."""
    async with Bcrypt.open(COST, 2) as hashing:
        first, second = await hashing.hash(SECRET), await hashing.hash(SECRET)
        dummy, seconds = hashing.dummy()
        assert first != second
        assert {first[:7], second[:7], dummy[:7]} == {b"$2b$04$"}
        assert bcrypt.checkpw(SECRET, first)
        assert await hashing.check(SECRET, second)
        assert not await hashing.check(b"password", first)
        assert not await hashing.check(SECRET, dummy)
        assert 0 < seconds < 1


@pytest.mark.parametrize("corrupt", [b"", b"$2b$04$short", b"no hash at all"])
async def test_a_corrupt_hash_is_a_failed_check_and_an_alarm(corrupt: bytes) -> None:
    """The alarm says what happened, and neither the hash nor the password."""
    lines: list[str] = []
    sink = logger.add(lines.append, format="{level} {message}")
    try:
        async with Bcrypt.open(COST, 1) as hashing:
            assert not await hashing.check(SECRET, corrupt)
    finally:
        logger.remove(sink)
    assert lines == ["ERROR a stored password hash is corrupt\n"]


@pytest.mark.parametrize(
    ("word", "common"),
    [("password", True), ("123456", True), ("iloveyou", True), ("", False), ("password\n123456", False), (7, False)],
)
def test_common_passwords(word: object, common: bool) -> None:  # noqa: FBT001 - a column of the table
    """The list knows well-known passwords as whole words in lower case."""
    assert (word in common_passwords()) is common


def test_common_passwords_cost_little() -> None:
    """The list is read without the library, which would cost every process 16 MB."""
    program = (
        "import sys; from service.passwords import common_passwords; common_passwords(); print('zxcvbn' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
