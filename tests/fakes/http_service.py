"""The application over flows that answer as the test says, and over everything else it talks to, in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

import anyio
from quart import Quart

from actors.authentication import Credentials
from actors.domain.errors import InvalidCredentials, UnknownStatus
from actors.domain.histogram import Histogram
from actors.domain.rate_limit import Reading, Rule
from actors.domain.totals import Totals
from actors.domain.user import Account, State
from actors.kit.background import BackgroundTasks
from actors.kit.mailbox import Address, Mailbox
from actors.limits import Client
from actors.metrics_aggregator import Observation
from actors.metrics_ports import Business, Delays, MailFigures, Metrics
from actors.ports import Admit, StoreUnavailable
from actors.signup import Form, Progress, Registration, Resend, SignUp
from service.embedded.mail_catcher import list_mails, read_mail
from service.http.app import Parts, build
from service.http.health import Verdict
from service.http.pages import CaughtMails
from service.settings import Settings
from tests.fakes.rate_limits import FakeRateLimits

ResultT = TypeVar("ResultT")

BORN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SOMEONE = UUID(int=7)
TOKEN = "unguessable-token"
EMAIL, PASSWORD, CODE = "ada@example.com", "correct horse battery", "012345"
PER_HOUR = Rule("register", 5, 3600)
ACTIVE = Account(SOMEONE, EMAIL, EMAIL, b"$2b$", "en", BORN, 1, BORN, BORN, 1, (), None, BORN)


class ScriptedSignUp(SignUp):
    """Knows one account, EMAIL with PASSWORD and CODE; raises `failure` from every flow when it is set.

    `expected` is what a registration is refused with before it is read.
    """

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.expected: Exception | None = None
        self.strict = False
        self.form: Form | None = None
        self.client: Client | None = None

    def expect_registration(self, client: Client) -> None:
        """Refuse what is to be refused early."""
        if self.expected is not None:
            client.readings.append(Reading(PER_HOUR, 0, 12.5))
            raise self.expected

    async def register(self, client: Client, form: Form) -> Registration | None:
        """Register anybody."""
        self.client, self.form = client, form
        client.readings.append(Reading(PER_HOUR, 4, 12.5))
        self._fail()
        return None if self.strict else Registration(SOMEONE, form.email, BORN, TOKEN)

    async def activate(self, client: Client, credentials: Credentials, code: str) -> Account:
        """Activate the one account."""
        self._check(client, credentials)
        assert code == CODE
        return ACTIVE

    async def resend(self, client: Client, credentials: Credentials) -> Resend | None:
        """Send another code."""
        self._check(client, credentials)
        return None if self.strict else Resend(EMAIL, 29.2, 8)

    async def progress(self, client: Client, credentials: Credentials) -> Progress:
        """Say that the mail is accepted."""
        self._check(client, credentials)
        return Progress(State.ACCEPTED, 41.3, 5, 0.0, EMAIL)

    async def progress_of(self, status_token: str) -> Progress:
        """Say that the mail is owed."""
        self._fail()
        if status_token != TOKEN:
            raise UnknownStatus
        return Progress(State.QUEUED, None, 5, 12.01, EMAIL)

    async def profile(self, client: Client, credentials: Credentials) -> Account:
        """Show the one account."""
        self._check(client, credentials)
        return ACTIVE

    def _check(self, client: Client, credentials: Credentials) -> None:
        self.client = client
        self._fail()
        if (credentials.email, credentials.password) != (EMAIL, PASSWORD):
            raise InvalidCredentials

    def _fail(self) -> None:
        if self.failure is not None:
            raise self.failure


@dataclass(slots=True)
class ScriptedHealth:
    """Says what the test sets."""

    draining: bool = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

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
        self.said.append(sentence)

    async def notes(self) -> Sequence[str]:
        """Say what was set."""
        return self.said


@dataclass
class FixedReader:
    """A reader that knows what the test says, or reaches no store."""

    metrics: Metrics | None = None

    async def read(self) -> Metrics:
        """Return what the test has set, or refuse."""
        if self.metrics is None:
            raise StoreUnavailable
        return self.metrics


class PromptLimiter(Address):
    """The RateLimiter's address without the actor: decides at once, over windows in memory.

    `rate_limits.away` is raised to the asker.
    """

    def __init__(self) -> None:
        self.rate_limits = FakeRateLimits(anyio.current_time)
        self.asked: list[Admit] = []

    async def ask(self, message: Any) -> Any:  # noqa: ANN401 - one kind of message, and its answer
        """Decide."""
        self.asked.append(message)
        [admission] = await self.rate_limits.decide([message])
        return admission


class Foreground(BackgroundTasks):
    """Runs a flow in the request's own task."""

    def __init__(self) -> None:
        pass

    async def run(self, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Run it."""
        return await work()


class FakeService:
    """All that the application needs, in memory."""

    def __init__(self) -> None:
        self.signup = ScriptedSignUp()
        self.health = ScriptedHealth()
        self.reader = FixedReader()
        self.limiter = PromptLimiter()
        self.noticed = Counter[str]()
        self.background: BackgroundTasks = Foreground()
        self._mailbox = Mailbox(1000)

    def app(self, given: Settings | None = None, **settings: Any) -> Quart:  # noqa: ANN401 - any setting
        """Return the application, on Trio unless a loop is named."""
        chosen = given or Settings.model_validate({"loop": "trio", **settings})
        mails = chosen.data_dir / "mails"
        caught = CaughtMails(partial(list_mails, mails), partial(read_mail, mails)) if chosen.mail_url is None else None
        return build(
            Parts(
                settings=chosen,
                signup=self.signup,
                background=self.background,
                metrics=Address(self._mailbox),
                limiter=self.limiter,
                reader=self.reader,
                health=self.health,
                locales=("de", "en"),
                noticed=self.noticed,
                caught_mails=caught,
            )
        )

    async def observations(self) -> list[Observation]:
        """Take what was offered to the metrics so far."""
        if not len(self._mailbox):
            return []
        messages = [envelope.message for envelope in await self._mailbox.take(1000)]
        return [message for message in messages if isinstance(message, Observation)]


def metrics() -> Metrics:
    """Return metrics with something in every place."""
    totals = Totals("api-1")
    totals.count([("GET /livez", 200, 3.0), ("GET /livez", 200, 30.0), ("POST /x", 503, 20_000.0)], 0)
    totals.raise_to({"limits_admitted|register": 4, "limits_refused|invalid": 2, "breaker_opened|redis": 1})
    histogram = Histogram()
    for milliseconds in (3.0, 30.0):
        histogram.add(milliseconds)
    levels = {"breaker_open|redis": 1.0, "mailbox_waiting|UserRegistry": 2.0}
    return Metrics(
        totals=totals.totals(),
        levels={"one": levels, "two": levels},
        latencies={"GET /livez": histogram},
        business=Business(5, 4, 3, 2, 1),
        mail=MailFigures(7, 12.34, 1, {"550 unknown": 1, "554 refused": 2}, Delays(3, 10.0, 20.0, 30.1234)),
        workers=2,
        notes=("Redis is away.",),
    )


class Telling(FakeService):
    """Has metrics to show."""

    def __init__(self) -> None:
        super().__init__()
        self.reader = FixedReader(metrics())
