"""Addresses: the part before the @ by RFC 5322's dot-atom, the domain by email-validator; no DNS look-ups."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from email_validator import EmailNotValidError, validate_email

from actors.domain.email_address import EmailAddress
from actors.domain.errors import InvalidEmail

MOST_BYTES: Final = 254  # RFC 5321, section 4.5.3.1.3: a path of 256 octets with its angle brackets
MOST_LOCAL_BYTES: Final = 64  # RFC 5321, section 4.5.3.1.1
ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
DOMAINS_KEPT: Final = 1024  # most people share a few, and reading one takes as long as all the rest of the address
DOT_ATOM: Final = re.compile(rf"{ATOM}(\.{ATOM})*")


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
