"""What operators may do: the token, its guesses, the session of the page, and the mail queue."""

from __future__ import annotations

import hmac
import re
import time
from base64 import urlsafe_b64encode
from collections import deque
from datetime import datetime  # noqa: TC003 - pydantic reads it
from ipaddress import ip_address
from secrets import token_urlsafe
from typing import TYPE_CHECKING, Annotated, Protocol
from urllib.parse import urlsplit
from uuid import UUID

import anyio
from pydantic import AfterValidator, Field
from quart import request

from actors.domain.code import hkdf_sha256
from actors.domain.errors import RateLimited
from actors.domain.mail import MailState
from actors.domain.rate_limit import TICK_SECONDS, Admission, Rule
from actors.kit.mailbox import MachineError
from actors.limits import of_client
from actors.ports import Admit
from service.http.client import peer
from service.http.json_body import read
from service.http.openapi import describes
from service.http.problems import InvalidFields, MalformedRequest, OpsTokenMissing, OpsTokenRequired, UnknownPath
from service.http.schemas import Sent, Text, View
from service.setting_values import moment

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quart import Response
    from werkzeug.datastructures import Headers

    from actors.domain.rate_limit import Bucket
    from actors.kit.mailbox import Address
    from actors.limits import Client
    from service.http.client import Clients
    from service.settings import Settings

RULE = Rule("ops-token", 10, 60)  # a typist needs three; a scraper with yesterday's token asks four times a minute
REMEMBERED = 1024  # guesses in this process, and only while no store answers
BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(\S+)")
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(:\d{1,5})?")
FORWARDED = ("forwarded", "x-forwarded-", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip", "via")
COOKIE = "vestibule_ops"
LIFETIME_SECONDS = 8 * 3600  # a working day; there is no list of sessions from which a stolen one could be struck
LABEL = b"vestibule ops session v1"
FOREIGN = "The form came from a page of another site."


class OpsGuesses:
    """Asks the RateLimiter; while neither store answers it decides by what this process has seen.

    The metrics are wanted most in such an outage, and guesses must not become free in it.
    """

    def __init__(self, limiter: Address) -> None:
        self._limiter = limiter
        self._seen: deque[tuple[Bucket, float]] = deque(maxlen=REMEMBERED)

    async def check(self, client: Client, *, wrong: bool) -> None:
        """Count a wrong token; raises RateLimited, also for the right one, while the client's window is full.

        The caller compares before it asks and answers after it knows: of guesses that come all at once no more than the
        limit learn that they were wrong.
        """
        buckets = of_client(RULE, client)
        try:
            admission = await self._limiter.ask(Admit(buckets, count=wrong))
        except MachineError:
            admission = self._decide_alone(buckets, count=wrong)
        if wrong or not admission.admitted:
            client.readings.extend(admission.readings)
        if not admission.admitted:
            raise RateLimited(admission.retry_after)

    def _decide_alone(self, buckets: tuple[Bucket, ...], *, count: bool) -> Admission:
        now = anyio.current_time()
        seen = [bucket for bucket, counted_at in self._seen if now - counted_at <= RULE.seconds]
        admitted = all(seen.count(bucket) < bucket.rule.limit for bucket in buckets)
        if admitted and count:
            self._seen.extend((bucket, now) for bucket in buckets)
        return Admission(admitted, 0.0 if admitted else RULE.seconds + TICK_SECONDS, (), "")


class OpsAccess:
    """Checks requests against the settings, and lets no client guess for long."""

    def __init__(self, settings: Settings, clients: Clients, limiter: Address) -> None:
        self._token = None if settings.ops_token is None else settings.ops_token.get_secret_value().encode()
        self._clients = clients
        self._guesses = OpsGuesses(limiter)

    async def check(self) -> None:
        """Let the current request pass, or raise OpsTokenMissing, OpsTokenRequired or RateLimited."""
        if self._token is None:
            if not from_this_machine(peer(), request.headers):
                raise OpsTokenRequired
            return
        typed = bearer(request.headers)
        if typed is None:  # nothing is compared, so nothing was guessed
            raise OpsTokenMissing
        await self.check_token(typed)

    async def check_token(self, typed: str) -> None:
        """Return if this is the token; raises OpsTokenMissing, or RateLimited for a client that has guessed too often.

        Compared in constant time; nothing is the token where none is set.
        """
        right = self._token is not None and hmac.compare_digest(self._token, typed.encode(errors="replace"))
        await self._guesses.check(self._clients.current(), wrong=not right)
        if not right:
            raise OpsTokenMissing


def bearer(headers: Headers) -> str | None:
    """Return what the one Authorization header carries; None for another scheme, or another number of headers."""
    values = headers.getlist("Authorization")
    match = BEARER.fullmatch(values[0]) if len(values) == 1 else None
    return None if match is None else match[1]


def from_this_machine(client: str, headers: Headers) -> bool:
    """Whether a loopback peer asked for a loopback name without any proxy between, as far as headers show.

    A Unix socket has no peer address: it is there for a proxy, and counts as another machine.
    """
    if any(name.lower().startswith(FORWARDED) for name in headers.keys()):  # noqa: SIM118 - not a dict
        return False
    hosts = headers.getlist("Host")
    match = HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return match is not None and _loopback(client) and _loopback_name(match[1].strip("[]"))


def _loopback(client: str) -> bool:
    try:
        address = ip_address(client)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def _loopback_name(name: str) -> bool:
    return name.lower().rstrip(".") == "localhost" or _loopback(name)


class OpsSession:
    """Makes and checks cookies; without a token set there are none, and the rule of OpsAccess is all there is."""

    def __init__(self, settings: Settings, access: OpsAccess, now: Callable[[], float] = time.time) -> None:
        self._access = access
        self._now = now
        self._secure = settings.public_url is not None and settings.public_url.startswith("https://")
        self._path = f"{settings.root}/ops"
        self._public = urlsplit(settings.public_url).netloc if settings.public_url else None
        token = settings.ops_token
        self._key = None if token is None else hkdf_sha256(token.get_secret_value().encode(), LABEL)

    @property
    def needed(self) -> bool:
        """Whether operators sign in at all."""
        return self._key is not None

    def is_wanting(self) -> bool:
        """Whether the current request carries no session that is good, and no attempt at the token itself."""
        carried = "Authorization" in request.headers or self.is_good(request.cookies.get(COOKIE, ""))
        return self.needed and not carried

    async def check(self) -> None:
        """Let the current request pass, by its cookie or as OpsAccess does; raises what that raises."""
        if not self.is_good(request.cookies.get(COOKIE, "")):
            await self._access.check()

    def is_good(self, value: str) -> bool:
        """Whether a cookie's value was made under the token of today and its time is not over."""
        stated, _, mac = value.rpartition(".")
        if self._key is None or not hmac.compare_digest(self._mac(stated), mac.encode(errors="replace")):
            return False
        return self._now() < int(stated.partition(".")[0])  # only we can have written it

    def value(self) -> str:
        """Return a new cookie's value; no two are alike."""
        stated = f"{int(self._now()) + LIFETIME_SECONDS}.{token_urlsafe(12)}"
        return f"{stated}.{self._mac(stated).decode()}"

    def cookie(self, value: str, *, lifetime: int = LIFETIME_SECONDS) -> str:
        """Return the Set-Cookie header that hands a value to the current client; `lifetime` 0 takes it back."""
        forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
        https = "https" in {request.scheme, forwarded}
        secure = "; Secure" if self._secure or https else ""  # a forged header makes the cookie stricter
        return f"{COOKIE}={value}; Path={self._path}; Max-Age={lifetime}; HttpOnly; SameSite=Strict{secure}"

    def check_origin(self) -> None:
        """Raise MalformedRequest for a form that a page of another site has sent, as far as the browser says so."""
        if not own_page(request.headers, self._public):
            raise MalformedRequest(FOREIGN)

    def _mac(self, stated: str) -> bytes:
        mac = hmac.digest(self._key or b"", stated.encode(errors="replace"), "sha256")
        return urlsafe_b64encode(mac).rstrip(b"=")


def own_page(headers: Headers, public: str | None) -> bool:
    """Whether a request comes from a page of ours, or from no page; `public` is PUBLIC_URL's host.

    Browsers say so in Sec-Fetch-Site where the connection is trustworthy, else in Origin; programs say neither.
    """
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in {"same-origin", "none"}
    origin = headers.get("Origin")
    return origin is None or origin.partition("://")[2] in {headers.get("Host"), public} - {None, ""}


MOST, USUAL = 1000, 100  # mails in one answer
LIMIT = re.compile(r"[0-9]{1,4}")
MOST_REPLAYED = 10_000  # in one call; a repeat takes the next ones
NARROWING: tuple[Mapping[str, object], ...] = (
    {
        "name": "state",
        "in": "query",
        "description": "Only mails in this state.",
        "schema": {"type": "string", "enum": [*MailState]},
    },
    {
        "name": "since",
        "in": "query",
        "description": "Created since: 90s, 30m, 2h, 1d ago, or a time like 2026-01-31T12:00:00Z.",
        "schema": {"type": "string"},
    },
    {
        "name": "limit",
        "in": "query",
        "description": "At most so many.",
        "schema": {"type": "integer", "minimum": 1, "maximum": MOST, "default": USUAL},
    },
)


class MailEntry(Protocol):
    """One mail as an operator sees it."""

    @property
    def id(self) -> UUID:
        """Its id."""
        ...


class MailAdmin(Protocol):
    """The operator's hand on the mail queue."""

    async def mails(
        self, *, mail_id: UUID | None = None, state: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> Sequence[MailEntry]:
        """Return the newest mails that match, newest first."""
        ...

    async def replay(self, mail_ids: Sequence[UUID], *, dry_run: bool) -> Sequence[UUID]:
        """Queue again those that are still of use, and return which they are."""
        ...


class OwedMailView(View):
    """One mail of the outbox; `reason` is of the last failure, `due_at` the next attempt or the lease's end."""

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
    """The handlers, around the mail queue's administration."""

    def __init__(self, admin: MailAdmin) -> None:
        self._admin = admin

    @describes({200: OwedMailsView}, access="ops", parameters=NARROWING)
    async def mail_queue(self) -> Response:
        """List the newest mails of the queue."""
        state, since, limit = _wanted()
        mails = await self._admin.mails(state=state, since=since, limit=limit)
        return OwedMailsView(mails=[OwedMailView.of(mail) for mail in mails]).response()

    @describes({200: OwedMailView}, access="ops", problems=(UnknownPath,))
    async def owed_mail(self, mail_id: str) -> Response:
        """Show one mail."""
        try:
            found = await self._admin.mails(mail_id=UUID(mail_id))
        except ValueError:
            raise UnknownPath from None
        if not found:
            raise UnknownPath
        return OwedMailView.of(found[0]).response()

    @describes({200: ReplayedView}, body=ReplayRequest, access="ops")
    async def replay(self) -> Response:
        """Queue the named mails again, or the dead ones, under fresh codes, where they are still of use."""
        asked = await read(ReplayRequest)
        ids = [UUID(one) for one in asked.ids or ()]
        if asked.dead:
            since = None if asked.since is None else moment(asked.since)
            ids = [mail.id for mail in await self._admin.mails(state="dead", since=since, limit=MOST_REPLAYED)]
        replayed = await self._admin.replay(ids, dry_run=asked.dry_run)
        return ReplayedView(dry_run=asked.dry_run, replayed=list(replayed)).response()


def _wanted() -> tuple[str | None, datetime | None, int]:
    """Read the query; raises InvalidFields, which repeats nothing of it."""
    query = request.args
    state, since, limit = query.get("state"), query.get("since"), query.get("limit", str(USUAL))
    if state is not None and state not in set(MailState):
        raise InvalidFields([("state", f"must be one of {', '.join(MailState)}")])
    if not (LIMIT.fullmatch(limit) and 1 <= int(limit) <= MOST):
        raise InvalidFields([("limit", f"must be a number from 1 to {MOST}")])
    try:
        return state, None if since is None else moment(since), int(limit)
    except ValueError as error:
        raise InvalidFields([("since", str(error))]) from None
