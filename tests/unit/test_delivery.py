from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from itertools import count, pairwise
from uuid import UUID, uuid4

import anyio
import pytest

from actors.delivery import IN_HAND, SENDS, WARNING_SECONDS, Delivery
from actors.domain.code import Keyring
from actors.domain.mail import ClaimedMail, Deferred, MailKind, MailState, Outcome, Rejected, Result, ServerUnavailable
from actors.kit.mailbox import AnswerLost, MachineError
from actors.ports import StoreUnavailable
from tests.fakes.mail_queue import MemoryMailQueue, ScriptedTransport

KEYRING = Keyring({"k1": b"1" * 32})
REISSUED = UUID(int=7)


class Log:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.lines: list[str] = []

    def delivered(self, _mail: ClaimedMail, result: Result) -> None:
        """Keep a result."""
        self.results.append(result)

    def server(self, failure: str | None, seconds: float) -> None:
        """Keep a warning or the end of a failure."""
        self.lines.append(f"failing {failure} {seconds:.0f}" if failure else f"works {seconds:.0f}")

    def queue(self, failure: MachineError | None) -> None:
        """Keep a warning or the end of an outage."""
        self.lines.append(f"queue away {type(failure).__name__}" if failure else "queue back")

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of the mails, in the order in which it was known."""
        return [result.outcome for result in self.results]


class Worker:
    """A delivery with its queue, transport and log, without jitter."""

    def __init__(self, *, seconds: float = 0.0, latency: float = 0.0) -> None:
        self.queue = MemoryMailQueue(latency=latency)
        self.transport = ScriptedTransport(seconds=seconds)
        self.log = Log()
        self.traced: list[BaseException | None] = []
        numbers = count(REISSUED.int)
        self.delivery = Delivery(
            self.queue,
            self.transport,
            KEYRING,
            self.log,
            life_needed=60,
            new_id=lambda: UUID(int=next(numbers)),
            chance=lambda: 0.0,
            trace=self.trace,
        )

    @contextmanager
    def trace(self, _mail: ClaimedMail) -> Iterator[None]:
        """Note with what error a send ended, if any."""
        try:
            yield
        finally:
            self.traced.append(sys.exception())

    @asynccontextmanager
    async def runs(self, seconds: float = 0.5) -> AsyncIterator[None]:
        """Run the delivery for so long, then the body, then until everything in hand is settled."""
        async with anyio.create_task_group() as group:
            group.start_soon(self.delivery.run)
            await anyio.sleep(seconds)
            yield
            self.delivery.close()

    async def run(self, seconds: float = 0.5) -> None:
        """Run the delivery for so long."""
        async with self.runs(seconds):
            pass


def nothing() -> None:
    """Do nothing."""


def step(
    error: Exception | None = None, *, seconds: float = 0.0, then: Callable[[], object] = nothing
) -> Callable[[ClaimedMail], Awaitable[None]]:
    """Return a step of a transport's script that takes its time, then does something, and raises the error."""

    async def take(_: ClaimedMail) -> None:
        await anyio.sleep(seconds)
        then()
        if error is not None:
            raise error

    return take


# -- one mail


@pytest.mark.parametrize(
    ("age", "key_id", "reissued"),
    [(0, "k1", False), (800, "k1", False), (845, "k1", True), (0, "removed", True), (899, "removed", True)],
)
async def test_a_mail_leaves_with_a_code_that_can_be_redeemed(
    autojump_clock: object, age: float, key_id: str, *, reissued: bool
) -> None:
    """Derived from its own id and key; one too old, or of a removed key, is reissued. The trace sees the send."""
    worker = Worker()
    row = worker.queue.owe(age=age, key_id=key_id)
    await worker.run()
    [(mail, code)] = worker.transport.accepted
    assert (mail.id == REISSUED, row.mail.id) == (reissued, mail.id)
    assert code == KEYRING.code(mail.account, mail.id, "k1")
    assert (row.state, worker.log.outcomes, worker.traced) == (MailState.ACCEPTED, [Outcome.ACCEPTED], [None])


async def test_a_code_that_grows_too_old_in_hand_is_reissued(autojump_clock: object) -> None:
    """The time that a mail waits for a connection counts."""
    worker = Worker(seconds=30)
    for _ in range(SENDS + 1):
        worker.queue.owe(age=820)
    await worker.run(40)
    assert REISSUED in {mail.id for mail, _ in worker.transport.accepted}


async def test_a_mail_that_nobody_needs_any_more_is_not_sent(autojump_clock: object) -> None:
    """A code that was redeemed while its mail waited is not reissued."""
    worker = Worker()
    worker.queue.owe(age=890).needed = False
    await worker.run()
    assert (worker.transport.tried, worker.log.outcomes) == ([], [Outcome.NOT_NEEDED])


async def test_a_notice_carries_no_code_and_never_grows_too_old(autojump_clock: object) -> None:
    """The owner of a taken address is told without a code, however long the notice has waited."""
    worker = Worker()
    row = worker.queue.owe(kind=MailKind.NOTICE, age=5000)
    await worker.run()
    assert [(mail.id, code) for mail, code in worker.transport.accepted] == [(row.mail.id, None)]


@pytest.mark.parametrize(
    ("error", "outcome", "reason", "waits"),
    [
        (Rejected("550 5.1.1 at RCPT"), Outcome.DEAD, "550 5.1.1 at RCPT", 0),
        (Deferred("451 at RCPT"), Outcome.DEFERRED, "451 at RCPT", 1),
        (Deferred("HTTP 429", retry_after=120), Outcome.DEFERRED, "HTTP 429", 120),
        (Deferred("HTTP 429", retry_after=10_000), Outcome.DEFERRED, "HTTP 429", 900),
        (ServerUnavailable("connection refused"), Outcome.DEFERRED, "connection refused", 0),
        (ZeroDivisionError("ada@example.com"), Outcome.DEFERRED, "internal ZeroDivisionError", 1),
    ],
)
async def test_what_a_server_says_decides_what_becomes_of_the_mail(
    autojump_clock: object, error: Exception, outcome: Outcome, reason: str, waits: float
) -> None:
    """A rejection is final; else the mail waits for its back-off, or for as long as a provider asks, within reason."""
    worker = Worker()
    worker.transport.script = [step(error)]
    row = worker.queue.owe()
    began = anyio.current_time()
    await worker.run()
    [result] = worker.log.results
    assert (result.outcome, row.reason, round(row.due_at - began)) == (outcome, reason, waits)
    assert worker.traced == [error]
    assert "ada@" not in repr(result)
    assert isinstance(result.error, ZeroDivisionError) == (reason == "internal ZeroDivisionError")


async def test_a_refused_mail_is_tried_after_growing_pauses_with_the_same_code(autojump_clock: object) -> None:
    """Retries wait 1, 2, 4, 8, 15, then 30 s, plus at most the second between sweeps."""
    worker = Worker()
    worker.transport.script = [step(Deferred("451 at RCPT")) for _ in range(7)]
    worker.queue.owe()
    await worker.run(120)
    times = [at for at, _ in worker.transport.tried]
    pauses = [after - before for before, after in pairwise(times)]
    assert all(wait <= pause <= wait + 1 for wait, pause in zip((1, 2, 4, 8, 15, 30, 30), pauses, strict=True))
    assert len(worker.transport.accepted) == 1


# -- claims


async def test_a_mail_leaves_at_once_after_a_wake_up_and_within_a_second_without(autojump_clock: object) -> None:
    """A wake-up is worth the second that the next sweep would cost."""
    worker = Worker()
    async with worker.runs():
        woken = worker.queue.owe()
        worker.delivery.wake()
        await anyio.sleep(0.01)
        assert woken.state is MailState.ACCEPTED
        swept = worker.queue.owe()
        await anyio.sleep(0.01)
        assert len(worker.transport.accepted) == 1
        await anyio.sleep(1)
        assert swept.state is MailState.ACCEPTED


async def test_a_backlog_leaves_in_batches_without_a_pause(autojump_clock: object) -> None:
    """A hundred mails of half a second over the agreed connections: no pause between claims, few statements."""
    worker = Worker(seconds=0.5, latency=0.01)
    for _ in range(96):
        worker.queue.owe()
    await worker.run(96 / SENDS * 0.5 + 1)
    assert worker.queue.states() == {MailState.ACCEPTED}
    assert worker.transport.most_running == SENDS
    assert max(worker.queue.claims) == IN_HAND
    assert worker.queue.calls.count("accepted") <= 96 / SENDS + 1


async def test_two_mails_of_an_account_are_never_written_in_one_statement(autojump_clock: object) -> None:
    """PostgreSQL would change the row of the account's older code only once."""
    worker = Worker(latency=0.1)
    account = uuid4()
    worker.queue.owe(account=account)
    async with worker.runs(0.15):
        worker.queue.owe(account=account, kind=MailKind.NOTICE)
        worker.delivery.wake()
        await anyio.sleep(2)
    assert worker.queue.states() == {MailState.ACCEPTED}


async def test_mails_that_must_be_alone_are_sent_with_no_other_in_hand(autojump_clock: object) -> None:
    """A worker died with them: each is tried by itself, and costs the others one pause."""
    worker = Worker(seconds=0.1)
    others = [worker.queue.owe() for _ in range(3)]
    suspects = [worker.queue.owe(alone=True) for _ in range(2)]
    beside: list[int] = []
    worker.transport.always = step(then=lambda: beside.append(worker.delivery.in_hand))
    await worker.run(1)
    assert worker.queue.states() == {MailState.ACCEPTED}
    assert [row.mail.tries for row in (*others, *suspects)] == [1] * 5
    assert beside.count(1) == 2
    assert {mail for _, mail in worker.transport.tried[-2:]} == {row.mail.id for row in suspects}


async def test_closing_ends_what_is_being_sent_and_puts_the_rest_back(autojump_clock: object) -> None:
    """A worker that stops leaves no mail half sent, claims nothing more, and no lease to wait for."""
    worker = Worker(seconds=5)
    rows = [worker.queue.owe() for _ in range(SENDS + 2)]
    async with worker.runs(1):
        worker.delivery.close()
        rows.append(worker.queue.owe())
        worker.delivery.wake()
    assert sorted(row.state for row in rows) == [MailState.ACCEPTED] * SENDS + [MailState.QUEUED] * 3
    assert all(row.mail.tries == (row.state is MailState.ACCEPTED) for row in rows)


# -- the queue is away


async def test_a_queue_that_is_away_is_asked_about_once_a_second_even_when_woken(autojump_clock: object) -> None:
    """The worker outlives an outage of the database, says so once, and delivers after it."""
    worker = Worker()
    worker.queue.failures = [StoreUnavailable() for _ in range(4)]
    row = worker.queue.owe()
    async with worker.runs(0):
        for _ in range(30):
            worker.delivery.wake()
            await anyio.sleep(0.1)
        assert 3 <= worker.queue.calls.count("claim") <= 4
        await anyio.sleep(5)
        assert row.state is MailState.ACCEPTED
    assert worker.log.lines == ["queue away StoreUnavailable", "queue back"]


async def test_an_acceptance_is_written_when_the_queue_is_back_and_not_sent_again(autojump_clock: object) -> None:
    """The server has the mail: its outcome is written however long the database is away."""
    worker = Worker()
    failures = [AnswerLost(), *(StoreUnavailable() for _ in range(90))]
    worker.transport.script = [step(then=lambda: worker.queue.failures.extend(failures))]
    row = worker.queue.owe()
    await worker.run(120)
    assert (len(worker.transport.accepted), row.state) == (1, MailState.ACCEPTED)
    assert worker.log.lines == ["queue away AnswerLost", "queue back"]


async def test_a_mail_that_cannot_be_reissued_now_is_put_back(autojump_clock: object) -> None:
    """It waits for the database without a send."""
    worker = Worker(latency=0.1)
    worker.queue.owe(age=890)
    async with worker.runs(0.15):
        worker.queue.failures = [StoreUnavailable()]
        await anyio.sleep(3)
    assert worker.log.outcomes == [Outcome.PUT_BACK, Outcome.ACCEPTED]


# -- leases


async def test_the_leases_of_all_mails_in_hand_are_renewed_together(autojump_clock: object) -> None:
    """A server that takes a minute to answer keeps its mails with this worker; a missed renewal costs nothing."""
    worker = Worker(seconds=59)
    async with worker.runs(6):  # with nothing in hand at the first renewal
        for _ in range(3):
            worker.queue.owe()
        await anyio.sleep(6)
        worker.queue.failures = [StoreUnavailable()]
        rivals = []
        for _ in range(50):
            await anyio.sleep(1)
            rivals += await MemoryMailQueue(rows=worker.queue.rows).claim(9)
        assert rivals == []
        await anyio.sleep(5)
    assert worker.queue.states() == {MailState.ACCEPTED}
    assert worker.queue.calls.count("extend") == 12
    assert worker.queue.calls.count("accepted") == 1


@pytest.mark.parametrize("when", ["sending", "accepted"])
async def test_a_mail_whose_claim_is_lost_is_let_go(autojump_clock: object, when: str) -> None:
    """Another worker has it: the send ends, or its outcome is not written."""
    worker = Worker()
    row = worker.queue.owe()

    def overtake() -> None:
        row.mail = replace(row.mail, fence=row.mail.fence + 1)
        row.due_at += 3600

    worker.transport.script = [step(seconds=3600) if when == "sending" else step(then=overtake)]
    async with worker.runs(1):
        if when == "sending":
            overtake()
        await anyio.sleep(10)
        assert worker.log.outcomes == [Outcome.LOST]
    assert row.state is MailState.SENDING
    assert len(worker.transport.accepted) == (when == "accepted")


async def test_a_renewal_that_crosses_a_reissue_loses_nothing(autojump_clock: object) -> None:
    """The lease of the old id is gone, and the new one is still ours."""
    worker = Worker(latency=4)
    worker.queue.owe(age=890)
    await worker.run(60)
    assert "extend" in worker.queue.calls
    assert worker.log.outcomes == [Outcome.ACCEPTED]


# -- the mail server fails


@pytest.mark.parametrize(
    ("recipients", "error"),
    [
        (["a@one.example"], ServerUnavailable("connection refused")),
        (["a@one.example", "b@two.example"], Deferred("554 5.7.1 at RCPT")),
    ],
)
@pytest.mark.parametrize("lasts", [3, 20, 300, 3600])
async def test_after_an_outage_all_mails_leave_soon_and_had_one_attempt_at_a_time(
    autojump_clock: object, lasts: float, recipients: list[str], error: Exception
) -> None:
    """One attempt tries for all, after pauses of a thirtieth of the outage, 1 to 60 s; the mail that tries rotates."""
    worker = Worker()
    began = anyio.current_time()

    async def refuse(_: ClaimedMail) -> None:
        await anyio.lowlevel.checkpoint()
        if anyio.current_time() - began < lasts:
            raise error

    worker.transport.always = refuse
    rows = [worker.queue.owe(recipients[number % len(recipients)]) for number in range(40)]
    async with worker.runs(SENDS):
        early = [mail for at, mail in worker.transport.tried if at - began > 1.2 and at - began < lasts]
        assert len(set(early)) == len(early)
        await anyio.sleep(lasts * 1.04 + 2 - SENDS if lasts * 1.04 + 2 > SENDS else 0)
        assert worker.queue.states() == {MailState.ACCEPTED}
    times = [at - began for at, _ in worker.transport.tried if at - began < lasts]
    assert len(times) <= IN_HAND + 200
    assert all(after - before <= 60 for before, after in pairwise(times))
    first, *warnings, last = worker.log.lines
    assert (first, last.split(" ")[0]) == (f"failing {error} 0", "works")
    assert abs(len(warnings) - lasts // WARNING_SECONDS) <= 1
    assert max(row.mail.tries for row in rows) <= 3 + len(times) // 40


@pytest.mark.parametrize("apart", [0.0, 0.1])
async def test_mails_that_were_not_tried_in_an_outage_lose_nothing(autojump_clock: object, apart: float) -> None:
    """One mail tries for all and has the reason; what left before the outage was known costs no try either."""
    worker = Worker()
    failure = ServerUnavailable("no STARTTLS offered")
    worker.transport.script = [step(failure, seconds=apart * number) for number in range(SENDS)]
    worker.transport.always = step(failure)
    rows = [worker.queue.owe() for _ in range(SENDS * 2)]
    await worker.run(0.9)
    assert sorted(row.mail.tries for row in rows) == [0] * (SENDS * 2 - 1) + [1]
    assert [row.reason for row in rows if row.mail.tries] == ["no STARTTLS offered"]


async def test_an_outage_without_mails_is_still_warned_about(autojump_clock: object) -> None:
    """Once a minute, until the next mail says how the server does; a rejection shows that it can be reached."""
    worker = Worker()
    worker.transport.script = [step(ServerUnavailable("connection refused")), step(Rejected("550 5.1.1 at RCPT"))]
    row = worker.queue.owe()
    async with worker.runs(0.5):
        row.due_at += 150
        await anyio.sleep(155)
    assert worker.log.lines == [
        "failing connection refused 0",
        "failing connection refused 60",
        "failing connection refused 120",
        "works 150",
    ]


@pytest.mark.parametrize(
    "errors",
    [
        [Deferred("451 at RCPT"), Deferred("450 at RCPT")],
        [Deferred("451 at RCPT"), None, Deferred("451 at RCPT")],
        [ZeroDivisionError(), ZeroDivisionError()],
        [Rejected("550 5.1.1 at RCPT"), Rejected("550 5.1.1 at RCPT")],
    ],
)
async def test_refusals_that_do_not_show_a_failing_server_let_each_mail_back_off_alone(
    autojump_clock: object, errors: list[Exception | None]
) -> None:
    """Different refusals, an acceptance between, our own errors, and rejections stop nothing."""
    worker = Worker()
    worker.transport.script = [step(error) for error in errors]
    async with worker.runs():
        for number in range(4):
            worker.queue.owe(f"ada@{number}.example")
            worker.delivery.wake()
            await anyio.sleep(0.03)
        await anyio.sleep(3)
    assert worker.log.lines == []
    assert worker.queue.states() <= {MailState.ACCEPTED, MailState.DEAD}


async def test_the_same_refusal_for_one_domain_stops_only_its_mails(autojump_clock: object) -> None:
    """A greylisting domain is no failing mail server."""
    worker = Worker()

    async def greylist(mail: ClaimedMail) -> None:
        await anyio.lowlevel.checkpoint()
        if mail.recipient.lower().endswith("@grey.example"):
            raise Deferred("450 4.2.0 at RCPT")

    worker.transport.always = greylist
    rows = [worker.queue.owe(recipient) for recipient in ("a@grey.example", "b@GREY.example", "ada@example.com")]
    await worker.run(0.5)
    assert [row.state for row in rows] == [MailState.QUEUED, MailState.QUEUED, MailState.ACCEPTED]
    assert worker.log.lines == []


async def test_a_refusal_of_one_mail_in_a_refusing_servers_outage_ends_nothing(autojump_clock: object) -> None:
    """Only an acceptance shows that a server that refused all mails takes them again."""
    worker = Worker()
    refusal = Deferred("554 5.7.1 at RCPT")
    worker.transport.script = [step(refusal), step(refusal), step(Rejected("550 5.1.1")), step(refusal)]
    for number in range(4):
        worker.queue.owe(f"ada@{number}.example")
    await worker.run(6)
    assert [line.split(" ")[0] for line in worker.log.lines] == ["failing", "works"]
