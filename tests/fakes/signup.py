"""Flows that answer as the test says, and the rest of what the application talks to."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NoReturn
from uuid import UUID

from actors.access import Place
from actors.domain.errors import InvalidCredentials, UnknownStatus
from actors.domain.user import State
from actors.domain.windows import Reading, Rule
from actors.forms import Activation, Profile, Progress, Registration, Resend
from actors.kit.mailbox import Address, Mailbox
from actors.metrics_aggregator import Observation
from actors.ports import StoreUnavailable
from actors.signup import SignUp
from tests.fakes.limiter import PromptLimiter

if TYPE_CHECKING:
    from collections.abc import Sequence

    import trio

    from actors.forms import Credentials, Form, Visit
    from service.http.health import Verdict

BORN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SOMEONE = UUID(int=7)
TOKEN = "unguessable-token"
EMAIL, PASSWORD, CODE = "ada@example.com", "correct horse battery", "012345"
PER_HOUR = Rule("register", 5, 3600)


class ScriptedSignUp(SignUp):
    """Knows one account, EMAIL with PASSWORD and CODE; raises `failure` from every flow when it is set."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.unwelcome: Exception | None = None
        self.full: Exception | None = None
        self.places: set[Place] = set()
        self.pause: trio.Event | None = None
        self.refusals = 0
        self.uncounted: Exception | None = None
        self.form: Form | None = None
        self.visit: Visit | None = None

    def place(self) -> Place:
        """Have a place unless the house is full."""
        if self.full is not None:
            raise self.full
        return Place(self.places)

    async def welcome(self, visit: Visit) -> None:
        """Turn away whoever is unwelcome."""
        self.visit = visit
        if self.unwelcome is not None:
            raise self.unwelcome

    async def refused(self, visit: Visit) -> None:
        """Count."""
        assert visit.networks
        self.refusals += 1
        if self.uncounted is not None:
            raise self.uncounted

    async def register(self, visit: Visit, form: Form) -> Registration:
        """Register whoever asks, after a pause if there is one."""
        if self.pause is not None:
            await self.pause.wait()
        visit.readings.append(Reading(PER_HOUR, 4, 12.5))
        self._fail()
        self.form = form
        return Registration(SOMEONE, form.email, BORN, TOKEN)

    async def activate(self, visit: Visit, credentials: Credentials, code: str) -> Activation:
        """Activate the one account."""
        self._check(visit, credentials)
        assert code == CODE
        return Activation(EMAIL, BORN)

    async def resend(self, visit: Visit, credentials: Credentials) -> Resend:
        """Send another code."""
        self._check(visit, credentials)
        return Resend(EMAIL, 29.2, 8)

    async def progress(self, visit: Visit, credentials: Credentials) -> Progress:
        """Say that the mail is accepted."""
        self._check(visit, credentials)
        return Progress(State.ACCEPTED, 41.3, 5, 0.0, EMAIL)

    async def progress_of(self, status_token: str) -> Progress:
        """Say that the mail is owed."""
        self._fail()
        if status_token != TOKEN:
            raise UnknownStatus
        return Progress(State.QUEUED, None, 5, 12.01, EMAIL)

    async def profile(self, visit: Visit, credentials: Credentials) -> Profile:
        """Show the one account."""
        self._check(visit, credentials)
        return Profile(SOMEONE, EMAIL, is_activated=True, created_at=BORN, activated_at=BORN)

    def _check(self, visit: Visit, credentials: Credentials) -> None:
        self.visit = visit
        self._fail()
        if (credentials.email, credentials.password) != (EMAIL, PASSWORD):
            raise InvalidCredentials

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass(slots=True)
class ScriptedHealth:
    """Says what the test wants to hear."""

    draining: bool = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    async def database(self) -> Verdict:
        """Say what was set."""
        return self.verdicts.get("database", "ok")

    async def redis(self) -> Verdict:
        """Say what was set."""
        return self.verdicts.get("redis", "ok")

    async def mail_queue(self) -> Verdict:
        """Say what was set."""
        return self.verdicts.get("mail_queue", "ok")

    def note(self, sentence: str) -> None:
        """Keep it."""
        self.told.append(sentence)

    def notes(self) -> Sequence[str]:
        """Say what was set."""
        return self.told


class NoReader:
    """A reader of metrics that reaches no store."""

    async def read(self) -> NoReturn:
        """Fail as a reader does without a database."""
        raise StoreUnavailable


@dataclass(frozen=True, slots=True)
class ScriptedMail:
    """A mail as the desk gives it."""

    id: UUID
    state: str = "dead"
    kind: str = "code"
    attempts: int = 1
    created_at: datetime = datetime(2026, 1, 31, tzinfo=UTC)
    due_at: datetime = datetime(2026, 1, 31, tzinfo=UTC)
    accepted_at: datetime | None = None
    reason: str | None = "550 at RCPT"
    to: str = "ada@example.com"
    locale: str = "en"


class ScriptedDesk:
    """A desk with the mails that a test lays on it; `asked` and `replayed` keep what it was asked for."""

    def __init__(self) -> None:
        self.lying: list[ScriptedMail] = []
        self.asked: list[tuple[str | None, datetime | None, int]] = []
        self.replayed: list[tuple[list[UUID], bool]] = []

    async def mails(
        self, *, mail_id: UUID | None = None, state: str | None = None, since: datetime | None = None, limit: int = 100
    ) -> list[ScriptedMail]:
        """Return what lies there and matches."""
        self.asked.append((state, since, limit))
        return [mail for mail in self.lying if (mail_id is None or mail.id == mail_id) and state in {None, mail.state}]

    async def replay(self, mail_ids: Sequence[UUID], *, dry_run: bool) -> list[UUID]:
        """Replay whatever is named."""
        self.replayed.append((list(mail_ids), dry_run))
        return list(mail_ids)


class FakeService:
    """All that the application needs, in memory."""

    def __init__(self) -> None:
        self.signup = ScriptedSignUp()
        self.health = ScriptedHealth()
        self.reader = NoReader()
        self.desk = ScriptedDesk()
        self.limiter = PromptLimiter()
        self.noticed = Counter[str]()
        self._mailbox = Mailbox(1000)
        self.metrics = Address(self._mailbox)

    async def observations(self) -> list[Observation]:
        """Take what was offered to the metrics so far."""
        if not len(self._mailbox):
            return []
        messages = [letter.message for letter in await self._mailbox.take(1000)]
        return [message for message in messages if isinstance(message, Observation)]
