"""What the flows need to judge addresses and passwords: bcrypt on threads, the list of common ones, address syntax."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
from contextlib import asynccontextmanager
from functools import cache, lru_cache
from pathlib import Path
from time import thread_time
from typing import TYPE_CHECKING, Final

import bcrypt
from email_validator import EmailNotValidError, validate_email
from loguru import logger

from actors.domain.email_address import EmailAddress
from actors.domain.errors import InvalidEmail
from service.threads import Threads

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

NICE: Final = 5  # the loops, the database's threads and the mail go first: a cheap request must not notice a hash
MOST_BYTES: Final = 254  # RFC 5321, section 4.5.3.1.3: a path of 256 octets with its angle brackets
MOST_LOCAL_BYTES: Final = 64  # RFC 5321, section 4.5.3.1.1
ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
DOMAINS_KEPT: Final = 1024  # most people share a few, and reading one takes as long as all the rest of the address
DOT_ATOM: Final = re.compile(rf"{ATOM}(\.{ATOM})*")


class Bcrypt:
    """The Hashing port; bcrypt releases the GIL, so as many threads as cores fill them."""

    def __init__(self, cost: int, threads: Threads) -> None:
        self._cost = cost
        self._threads = threads

    @classmethod
    @asynccontextmanager
    async def open(cls, cost: int, number: int) -> AsyncIterator[Bcrypt]:
        """Keep the threads around the body."""
        async with Threads("bcrypt", number, nice=NICE) as threads:
            yield cls(cost, threads)

    def dummy(self) -> tuple[bytes, float]:
        """Return a hash of this cost that no password makes, and the CPU seconds that it took; blocks for one hash."""
        begun = thread_time()
        hashed = bcrypt.hashpw(os.urandom(32).hex().encode(), bcrypt.gensalt(self._cost))
        return hashed, thread_time() - begun

    async def hash(self, secret: bytes) -> bytes:
        """Return a fresh `$2b$` hash of at most 72 bytes."""
        return await self._threads.run(lambda: bcrypt.hashpw(secret, bcrypt.gensalt(self._cost)))

    async def check(self, secret: bytes, hashed: bytes) -> bool:
        """Return whether the secret made the hash; a corrupt hash is a failed check and an alarm."""
        try:
            return await self._threads.run(lambda: bcrypt.checkpw(secret, hashed))
        except ValueError:
            logger.error("a stored password hash is corrupt")
            return False


@cache
def common_passwords() -> frozenset[str]:
    """Return the well-known passwords in lower case, read once: call it before processes are forked.

    Only the module of the lists is run, and forgotten: importing zxcvbn builds dictionaries of 16 MB.
    """
    library = importlib.util.find_spec("zxcvbn")
    if library is None or library.origin is None:
        raise ModuleNotFoundError("zxcvbn is not installed")
    lists = runpy.run_path(str(Path(library.origin).with_name("frequency_lists.py")))
    return frozenset(word.casefold() for word in lists["FREQUENCY_LISTS"]["passwords"])


class EmailAddresses:
    """The AddressReader port.

    Valid is what any mail server takes: an ASCII part before the @ without quotes, and a domain name, which may be
    international. Refused are display names, address literals, surrounding blanks, and names that never leave a
    machine or its network (`localhost`, `.local`, `.invalid`, names without a dot); `.test` is allowed, for tests.
    """

    def read(self, text: str) -> EmailAddress:
        """Return the address as typed and under its key; raises InvalidEmail, which never repeats the text."""
        local_part, at, domain = text.rpartition("@")
        fault = _fault(text, local_part, domain) if at else "An address has a name, an @ and a domain."
        if fault is not None:
            raise InvalidEmail(fault)
        key = f"{local_part.casefold()}@{_ascii_domain(domain)}"
        if len(key) > MOST_BYTES:
            raise InvalidEmail(f"The address is longer than {MOST_BYTES} bytes.")
        return EmailAddress(typed=text, key=key)


def _fault(text: str, local_part: str, domain: str) -> str | None:
    """Say what a person did, before a parser says what it means."""
    faults = (
        (len(text.encode(errors="replace")) > MOST_BYTES, f"The address is longer than {MOST_BYTES} bytes."),
        (text != text.strip(), "There are blanks around the address."),
        ("<" in text or ">" in text, "Give the address alone, without a name or angle brackets."),
        (not local_part, "There is nothing before the @."),
        (local_part.startswith('"'), "Quotes before the @ are not supported."),
        (not local_part.isascii(), "Only ASCII characters are supported before the @."),
        (len(local_part) > MOST_LOCAL_BYTES, f"The part before the @ is longer than {MOST_LOCAL_BYTES} bytes."),
        (not DOT_ATOM.fullmatch(local_part), "The part before the @ has a character or a dot where none may be."),
        (domain.startswith("["), "The part after the @ must be a domain name, not a number in brackets."),
    )
    return next((fault for applies, fault in faults if applies), None)


@lru_cache(DOMAINS_KEPT)
def _ascii_domain(domain: str) -> str:
    """Return the domain after NFC and IDNA, in lower case and ASCII."""
    try:
        valid = validate_email(
            f"x@{domain}",  # the other part is read already
            strict=True,
            allow_smtputf8=False,
            allow_quoted_local=False,
            allow_domain_literal=False,
            allow_display_name=False,
            check_deliverability=False,
            test_environment=True,
        )
    except (EmailNotValidError, UnicodeError):  # its message quotes the domain
        raise InvalidEmail("The part after the @ is not a domain name that takes mail.") from None
    if valid.ascii_domain == "test":
        raise InvalidEmail("The part after the @ should have a dot.")
    return valid.ascii_domain
