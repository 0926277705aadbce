"""What the mail catcher has caught: one file a mail under DATA_DIR/mails, read with the standard library alone."""

from __future__ import annotations

import os
import re
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import SMTPUTF8
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from email.message import EmailMessage
    from pathlib import Path

KEPT = 1000  # mails; a development machine needs no more, and the folder is listed for each page
ID = re.compile(r"\d{20}-[0-9a-f]{8}")
SUFFIX = ".eml"
ENVELOPE_TO = "X-Envelope-To"
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class CaughtMail:
    """One mail: `to` is whom the envelope named, `date` when it was caught (UTC). Texts are as sent: escape them.

    `to` and `subject` hold no control characters, whatever the headers held.
    """

    id: str
    to: str = field(repr=False)
    subject: str = field(repr=False)
    date: datetime
    text: str = field(repr=False)
    html: str | None = field(repr=False)


def list_mails(folder: Path, limit: int = 100) -> list[CaughtMail]:
    """Return the newest mails, newest first; none where there is no folder."""
    read = (read_mail(folder, name) for name in reversed(names(folder)[-limit:] if limit > 0 else []))
    return [mail for mail in read if mail is not None]


def read_mail(folder: Path, mail_id: str) -> CaughtMail | None:
    """Return one mail; None when there is none of that id, or no longer."""
    if not ID.fullmatch(mail_id):  # it comes from a URL, and names a file
        return None
    try:
        message = message_from_bytes((folder / (mail_id + SUFFIX)).read_bytes(), policy=SMTPUTF8)
    except FileNotFoundError:
        return None
    nanoseconds = int(mail_id.split("-", 1)[0])
    return CaughtMail(
        id=mail_id,
        to=_header(message, ENVELOPE_TO),
        subject=_header(message, "Subject"),
        date=datetime.fromtimestamp(nanoseconds / 1e9, UTC),
        text=_part(message, "plain") or "",
        html=_part(message, "html"),
    )


def keep_mail(folder: Path, recipients: list[str], content: bytes) -> str:
    """Write a mail as one file that appears whole, drop the oldest beyond `KEPT`, and return its id."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mail_id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    envelope = CONTROLS.sub(" ", ", ".join(recipients)).encode("utf-8", "surrogateescape")
    new = folder / f".{mail_id}.new"
    try:
        with open(new, "xb", opener=_private) as file:
            file.write(ENVELOPE_TO.encode() + b": " + envelope + b"\r\n" + content)
        new.rename(folder / (mail_id + SUFFIX))
    except OSError:
        new.unlink(missing_ok=True)
        raise
    for old in names(folder)[:-KEPT]:
        with suppress(FileNotFoundError):
            (folder / (old + SUFFIX)).unlink()
    return mail_id


def names(folder: Path) -> list[str]:
    """Return the ids of all mails, oldest first."""
    try:
        found = [entry.removesuffix(SUFFIX) for entry in os.listdir(folder) if entry.endswith(SUFFIX)]  # noqa: PTH208 - twice as fast
    except FileNotFoundError:
        return []
    return sorted(name for name in found if ID.fullmatch(name))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _header(message: EmailMessage, name: str) -> str:
    try:
        value = str(message[name] or "")
    except (ValueError, LookupError, IndexError, AttributeError):  # the parser of the library trips over some headers
        value = ""
    return CONTROLS.sub(" ", value).encode("utf-8", "replace").decode().strip()


def _part(message: EmailMessage, kind: str) -> str | None:
    """Return the body of one kind, in whatever charset it claims, or None."""
    part = message.get_body((kind,))
    if part is None:
        return None
    payload = part.get_payload(decode=True)
    raw = payload if isinstance(payload, bytes) else b""
    try:
        return raw.decode(part.get_content_charset("utf-8"), "replace")
    except LookupError:
        return raw.decode("utf-8", "replace")
