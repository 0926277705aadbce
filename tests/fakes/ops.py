"""A service with metrics to show to operators."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from actors.domain.sketches import Sketch
from actors.domain.tally import Tally
from actors.metrics_ports import Business, Delays, MailQueue, Metrics
from service.http.app import create_app
from service.settings import Settings
from tests.fakes.metrics import FixedReader
from tests.fakes.signup import FakeService

if TYPE_CHECKING:
    from quart import Quart


def metrics() -> Metrics:
    """Return metrics with something in every place."""
    tally = Tally("api-1")
    tally.count([("GET /livez", 200, 3.0), ("GET /livez", 200, 30.0), ("POST /x", 503, 20_000.0)], 0)
    tally.raise_to({"limits_admitted|register": 4, "limits_refused|invalid": 2, "breaker_opened|redis": 1})
    sketch = Sketch()
    sketch.add(3.0)
    levels = {"breaker_open|redis": 1.0, "mailbox_waiting|UserRegistry": 2.0}
    return Metrics(
        totals=tally.totals(),
        levels={"one": levels, "two": levels},
        latencies={"GET /livez": sketch},
        business=Business(5, 4, 3, 2, 1),
        mail=MailQueue(7, 12.34, 1, {"550 unknown": 1, "554 refused": 2}, Delays(3, 10.0, 20.0, 30.0)),
        workers=2,
        notes=("Redis is away.",),
    )


class Telling(FakeService):
    """Has metrics to show."""

    def __init__(self) -> None:
        super().__init__()
        self.reader: Any = FixedReader(metrics())


def app_of(service: FakeService, **settings: Any) -> Quart:  # noqa: ANN401 - any setting
    """Return the application on Trio, with these settings."""
    return create_app(Settings.model_validate({"loop": "trio", **settings}), service)
