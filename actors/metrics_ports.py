"""What the metrics need from outside, as Protocols, and what they give to whoever shows them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors.domain.sketches import Sketch
    from actors.domain.tally import WorkerReport


@dataclass(frozen=True, slots=True)
class Machinery:
    """How this process' machinery stands: levels that rise and fall, and counters since the start, by name.

    Names are joined by `|` like those of totals: `mailbox_waiting|user_registry`.
    """

    levels: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a store knows: a report for each worker, and which of them are alive.

    `folded` maps a worker to that part of its totals which stands in another report already and must be taken off.
    """

    reports: Sequence[WorkerReport]
    live: frozenset[str]
    folded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class MetricsStore(Protocol):
    """Keeps the newest report of each worker. Raises StoreUnavailable or AnswerLost; every write may be repeated."""

    async def write(self, report: WorkerReport) -> bool:
        """Replace the worker's totals and the given slices; False when the store knew no such worker before.

        A worker that is told False sends all its slices again: the store is new or was wiped.
        """
        ...


class QuickStore(MetricsStore, Protocol):
    """A store that may forget everything at any moment."""

    async def read(self, since: int) -> Holdings:
        """Return the reports of all workers with their slices that start at `since` (Unix seconds) or later."""
        ...

    async def departed(self) -> Sequence[WorkerReport]:
        """Return the reports of workers that have been silent for some seconds."""
        ...

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop the totals of workers that the ledger holds; their slices stay until they leave the window."""
        ...


class Ledger(MetricsStore, Protocol):
    """The store that lasts. A write of an older version than what it holds changes nothing."""

    async def read(self, since: int, known: Sequence[str] = ()) -> Holdings:
        """Return the reports as the quick store does; those folded completely only for the workers that are `known`."""
        ...

    async def compact(self, oldest: int) -> None:
        """Fold the totals of workers that are gone into one, and drop the slices that start before `oldest`."""
        ...


@dataclass(frozen=True, slots=True)
class Business:
    """Counters of what happened, written in the transactions they count."""

    registrations: int = 0
    activations: int = 0
    resends: int = 0
    mails_accepted: int = 0
    mails_dead: int = 0


@dataclass(frozen=True, slots=True)
class Delays:
    """From a mail being owed to its acceptance, in milliseconds, of the window; percentiles None without mails."""

    count: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class MailQueue:
    """The owed mails: how many wait or are being sent, since when, what was buried and why."""

    queued: int = 0
    oldest_queued_seconds: float = 0.0
    sending: int = 0
    dead: Mapping[str, int] = field(default_factory=dict)
    time_to_accept: Delays = Delays()


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything counted, over all workers and machines.

    `totals` are named as in actors.domain.tally; `levels` are those of each live worker; `latencies` are of the
    window. `notes` are sentences for a person about what could not be read.
    """

    totals: Mapping[str, float]
    levels: Mapping[str, Mapping[str, float]]
    latencies: Mapping[str, Sketch]
    business: Business
    mail: MailQueue
    workers: int
    notes: Sequence[str] = ()


class BusinessBooks(Protocol):
    """What the database counts."""

    async def business(self) -> Business:
        """Return the counters; raises StoreUnavailable."""
        ...

    async def mail(self) -> MailQueue:
        """Return the state of the mail queue; raises StoreUnavailable."""
        ...


class MetricsReader(Protocol):
    """Reads the metrics, exact to about a second."""

    async def read(self) -> Metrics:
        """Return the metrics; raises StoreUnavailable when the database is away and nothing is remembered."""
        ...
