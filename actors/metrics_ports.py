"""What the metrics need from outside, and what they are once read, as Protocols and values.

Every store method raises StoreUnavailable when nothing was done, and AnswerLost when that cannot be known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from actors.domain.histogram import Histogram
    from actors.domain.totals import WorkerReport


@dataclass(frozen=True, slots=True)
class RuntimeStatistics:
    """How this process' runtime stands: levels that rise and fall, and counters since the start, by name.

    Names are joined by `|` like those of totals: `mailbox_waiting|user_registry`.
    """

    levels: Mapping[str, float] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StoredReports:
    """What a store knows: a report for each worker, and which of them are alive.

    `folded` maps a worker to that part of its totals which stands in another report already and must be taken off.
    """

    reports: Sequence[WorkerReport]
    live: frozenset[str]
    folded: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


class LiveStore(Protocol):
    """Keeps each worker's totals and levels, and may forget them at any moment; slices are the lasting store's alone.

    Raises StoreUnavailable or AnswerLost; every write may be repeated.
    """

    async def write(self, report: WorkerReport) -> None:
        """Replace the worker's totals and levels."""

    async def read(self) -> StoredReports:
        """Return the reports of all workers; those that are silent for some seconds are not alive."""

    async def forget(self, workers: Sequence[str]) -> None:
        """Drop workers that are gone and stand in the lasting store."""


class LastingStore(Protocol):
    """Keeps what every worker has counted, those that are gone included.

    Raises StoreUnavailable or AnswerLost; every write may be repeated, and one that is older than what is held changes
    nothing.
    """

    async def write(self, report: WorkerReport) -> None:
        """Replace the worker's totals, its levels and the given slices."""

    async def read(self, since: int, known: Sequence[str] = ()) -> StoredReports:
        """Return the reports of all workers with their slices that start at `since` (Unix seconds) or later.

        Workers that are folded completely are left out unless they are `known`.
        """

    async def compact(self, oldest: int) -> None:
        """Fold the totals of workers that are gone into one, and drop the slices that start before `oldest`."""


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
class MailFigures:
    """The owed mails: how many wait or are being sent, since when, which are dead and why."""

    queued: int = 0
    oldest_queued_seconds: float = 0.0
    sending: int = 0
    dead: Mapping[str, int] = field(default_factory=dict)
    time_to_accept: Delays = Delays()


@dataclass(frozen=True, slots=True)
class Metrics:
    """Everything counted, over all workers and machines.

    `totals` are named as in actors.domain.totals; `levels` are those of each live worker; `latencies` are of the
    window. `notes` are sentences for a person about what could not be read.
    """

    totals: Mapping[str, float]
    levels: Mapping[str, Mapping[str, float]]
    latencies: Mapping[str, Histogram]
    business: Business
    mail: MailFigures
    workers: int
    notes: Sequence[str] = ()


class BusinessFigures(Protocol):
    """What the database counts."""

    async def business(self) -> Business:
        """Return the counters; raises StoreUnavailable."""

    async def mail(self) -> MailFigures:
        """Return the state of the mail queue; raises StoreUnavailable."""


class MetricsReader(Protocol):
    """Reads the metrics, exact to about a second."""

    async def read(self) -> Metrics:
        """Return the metrics; raises StoreUnavailable when the database is away and nothing is remembered."""
