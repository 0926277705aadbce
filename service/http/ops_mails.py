"""The mail queue for operators over HTTP: what `vestibule mail` does in a terminal. Never a code."""

from __future__ import annotations

import re
from datetime import datetime  # noqa: TC003 - pydantic reads it
from typing import TYPE_CHECKING, Annotated, Protocol
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field
from quart import request

from actors.domain.mail import MailState
from service.http.describing import Operation, describes
from service.http.errors import InvalidFields, UnknownPath
from service.http.json_gate import read
from service.http.schemas import Sent, Text, View
from service.moments import moment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from quart import Response

MOST, USUAL = 1000, 100  # mails in one answer
LIMIT = re.compile(r"[0-9]{1,4}")
MOST_REPLAYED = 10_000  # in one call; a repeat takes the next ones
NARROWING: Mapping[str, Mapping[str, object]] = {
    "state": {"description": "Only mails in this state.", "type": "string", "enum": [*MailState]},
    "since": {
        "description": "Created since: 90s, 30m, 2h, 1d ago, or a time like 2026-01-31T12:00:00Z.",
        "type": "string",
    },
    "limit": {
        "description": "At most so many.",
        "type": "integer",
        "minimum": 1,
        "maximum": MOST,
        "default": USUAL,
    },
}


class MailEntry(Protocol):
    """One mail as an operator sees it."""

    @property
    def id(self) -> UUID:
        """Its id."""
        ...


class MailDesk(Protocol):
    """The operator's hand on the mail queue."""

    async def mails(
        self, *, mail_id: UUID | None = None, state: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> Sequence[MailEntry]:
        """Return the newest mails that match, newest first."""
        ...

    async def replay(self, mail_ids: Sequence[UUID], *, dry_run: bool) -> Sequence[UUID]:
        """Queue again those that somebody may still wait for, and return which they are."""
        ...


class OwedMailView(View):
    """One mail of the outbox; `reason` is of the last failure, `due_at` the next attempt or the lease's end."""

    model_config = ConfigDict(frozen=True, from_attributes=True)

    id: UUID
    state: MailState
    kind: str
    attempts: int
    created_at: datetime
    due_at: datetime
    accepted_at: datetime | None
    reason: str | None
    to: str
    locale: str


class OwedMailsView(View):
    """The newest mails, newest first."""

    mails: list[OwedMailView]


class ReplayedView(View):
    """Which mails were queued again, or would be."""

    dry_run: bool
    replayed: list[UUID]


def _uuid(text: str) -> str:
    UUID(text)
    return text


def _moment(text: str) -> str:
    moment(text)
    return text


Uuid = Annotated[Text, AfterValidator(_uuid), Field(json_schema_extra={"format": "uuid"})]


class ReplayRequest(Sent):
    """Either the mails' ids or all dead ones, since some time."""

    one_of = ("ids", "dead")
    ids: list[Uuid] | None = Field(None, max_length=MOST)
    dead: bool = False
    since: Annotated[Text, AfterValidator(_moment)] | None = Field(None, examples=["2h"])
    dry_run: bool = False


class OpsMails:
    """The handlers, around the desk."""

    def __init__(self, desk: MailDesk) -> None:
        self._desk = desk

    @describes(
        Operation(
            "List the newest mails of the outbox.",
            {200: OwedMailsView},
            access="ops",
            query=NARROWING,
        )
    )
    async def mail_queue(self) -> Response:
        """Answer with the mails that match."""
        state, since, limit = _wanted()
        mails = await self._desk.mails(state=state, since=since, limit=limit)
        return OwedMailsView(mails=[OwedMailView.model_validate(mail) for mail in mails]).response()

    @describes(
        Operation("Show one mail.", {200: OwedMailView}, access="ops", problems=(UnknownPath,)),
    )
    async def owed_mail(self, mail_id: str) -> Response:
        """Answer with one mail; raises UnknownPath."""
        try:
            found = await self._desk.mails(mail_id=UUID(mail_id))
        except ValueError:
            raise UnknownPath from None
        if not found:
            raise UnknownPath
        return OwedMailView.model_validate(found[0]).response()

    @describes(
        Operation(
            "Queue mails again that somebody may still wait for; a stale code is replaced.",
            {200: ReplayedView},
            body=ReplayRequest,
            access="ops",
        )
    )
    async def replay(self) -> Response:
        """Replay the named mails, or the dead ones."""
        asked = await read(ReplayRequest)
        ids = [UUID(one) for one in asked.ids or ()]
        if asked.dead:
            since = None if asked.since is None else moment(asked.since)
            ids = [mail.id for mail in await self._desk.mails(state="dead", since=since, limit=MOST_REPLAYED)]
        replayed = await self._desk.replay(ids, dry_run=asked.dry_run)
        return ReplayedView(dry_run=asked.dry_run, replayed=list(replayed)).response()


def _wanted() -> tuple[str | None, datetime | None, int]:
    """Read the query; raises InvalidFields, which repeats nothing of it."""
    query = request.args
    state, since, limit = query.get("state"), query.get("since"), query.get("limit", str(USUAL))
    if state is not None and state not in set(MailState):
        raise InvalidFields([("state", "must be queued, sending, accepted or dead")])
    if not (LIMIT.fullmatch(limit) and 1 <= int(limit) <= MOST):
        raise InvalidFields([("limit", f"must be a number from 1 to {MOST}")])
    try:
        return state, None if since is None else moment(since), int(limit)
    except ValueError as error:
        raise InvalidFields([("since", str(error))]) from None
