"""MetricsAggregator: takes what handlers offer, keeps cumulative totals, writes them over and over."""

from __future__ import annotations

from dataclasses import dataclass

from actors.kit.mailbox import Offer


@dataclass(frozen=True, slots=True)
class Observation(Offer):
    """One answered request: its route's template (`POST /api/v1/users/register`), status and milliseconds."""

    route: str
    status: int
    milliseconds: float
