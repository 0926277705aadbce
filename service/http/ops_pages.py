"""The operators' page and the stream of its figures."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Self, cast
from urllib.parse import parse_qs
from weakref import WeakSet

import anyio
from pydantic_core import to_json
from quart import current_app, request
from quart.wrappers.response import ResponseBody
from werkzeug.http import parse_options_header

from actors.domain.totals import BOUNDS, OVERFLOW
from actors.kit.mailbox import MachineError, NotAccepted
from service.http.json_body import body
from service.http.metrics import MetricsView
from service.http.middleware import ENDING, exchange_of
from service.http.ops import OpsSession
from service.http.pages import wants_html
from service.http.problems import UnsupportedMedia
from service.http.schemas import response

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable

    from quart import Response

    from actors.metrics_ports import Metrics
    from service.http.app import Parts
    from service.http.ops import OpsAccess
    from service.http.pages import Pages


def snapshot(metrics: Metrics, notes: Iterable[str], version: str) -> dict[str, object]:
    """Return everything on the page, with the notes of the health check beside those of the reading.

    `routes` have their answers by status since the beginning, and their latency within the window. `buckets` are
    requests up to each bound in milliseconds, over all routes; the last bound is None, for no bound. What belongs to
    workers (limits, breakers, actors) is summed over them.
    """
    shown = MetricsView.all_of(metrics)
    statuses: dict[str, dict[str, int]] = defaultdict(dict)
    counts = dict.fromkeys([*map(str, BOUNDS), OVERFLOW], 0)
    for name, value in sorted(metrics.totals.items()):
        kind, _, rest = name.partition("|")
        route, _, last = rest.rpartition("|")
        if kind == "requests":
            statuses[route][last] = int(value)
        elif kind == "bucket":
            counts[last] += int(value)
    reasons = sorted(metrics.mail.dead.items(), key=lambda item: (-item[1], item[0]))
    return {
        "version": version,
        "workers": metrics.workers,
        "routes": [
            {"route": route, "statuses": each, "latency": shown.latencies.get(route)}
            for route, each in statuses.items()
        ],
        "buckets": list(zip([*BOUNDS, None], accumulate(counts.values()), strict=True)),
        "business": shown.business_metrics,
        "mail": {
            "queued": metrics.mail.queued,
            "sending": metrics.mail.sending,
            "oldest_queued_seconds": round(metrics.mail.oldest_queued_seconds, 1),
            "dead": dict(reasons),
            "time_to_accept": shown.mail.time_to_accept,
        },
        **_of_workers(metrics),
        "notes": list(dict.fromkeys([*metrics.notes, *notes])),
    }


# Each list of the page: what names its rows, the columns, and the kinds of totals and levels that they sum.
LISTS = {
    "limits": ("rule", {"admitted": "limits_admitted", "refused": "limits_refused"}),
    "breakers": ("server", {"open": "breaker_open", "opened": "breaker_opened"}),
    "actors": (
        "actor",
        {
            "waiting": "mailbox_waiting",
            "turned_away": "mailbox_turned_away",
            "dropped": "mailbox_dropped",
            "restarts": "restarts",
        },
    ),
}


def _of_workers(metrics: Metrics) -> dict[str, object]:
    """Return the lists whose totals and levels are named `kind|name`."""
    values: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for source in (metrics.totals, *metrics.levels.values()):
        for key, value in source.items():
            kind, _, name = key.partition("|")
            values[kind][name] += value
    return {
        title: [
            {label: name, **{column: int(values[kind][name]) for column, kind in columns.items()}}
            for name in sorted({name for kind in columns.values() for name in values[kind]})
        ]
        for title, (label, columns) in LISTS.items()
    }


MOST_STREAMS = 8  # in a worker: each costs a reading of the metrics every two seconds, shared if they coincide
EVERY_SECONDS = 2.0
LIFE_SECONDS = 900.0
BUSY_SECONDS = 5.0
HELLO = "retry: 1000\n\n"
BEAT = ": beat\n\n"  # before the reading, which may take its time: proxies and clients see that we are there
TROUBLE = "event: trouble\ndata: The database cannot be reached. Trying again.\n\n"
BYE = "event: bye\ndata: This worker ends. Connecting to another one.\n\n"
HEADERS = {
    "Connection": "close",  # its end frees the connection too: the next one must be able to reach another worker
    "X-Accel-Buffering": "no",  # nginx would collect events until its buffer is full
}


class OpsStream:
    """Opens streams, at most MOST_STREAMS at a time; `read` gives a snapshot as JSON on one line."""

    def __init__(self, read: Callable[[], Awaitable[str]]) -> None:
        self._read = read
        self._open: WeakSet[Events] = WeakSet()  # a stream that never began to be sent frees its place too

    def answer(self) -> Response:
        """Answer the current request with a stream; raises NotAccepted when there is no place or no time left.

        A HEAD request gets the headers and no stream.
        """
        ending = cast("dict[str, Any]", request.scope).get(ENDING) or anyio.Event()
        if ending.is_set():
            raise NotAccepted
        if len(self._open) >= MOST_STREAMS:
            raise NotAccepted(BUSY_SECONDS)
        exchange_of(request.scope).streaming = True
        body: Events | str = ""
        if request.method != "HEAD":
            body = Events(self._events(ending), self._open)
            self._open.add(body)
        answer: Response = current_app.response_class(body, 200, HEADERS, content_type="text/event-stream")
        return answer

    async def _events(self, ending: anyio.Event) -> AsyncGenerator[str, None]:
        """Send a snapshot every two seconds, until the worker leaves or the stream is old."""
        yield HELLO
        last = anyio.current_time() + LIFE_SECONDS
        while not ending.is_set() and anyio.current_time() < last:
            yield BEAT
            yield await self._snapshot()
            with anyio.move_on_after(min(EVERY_SECONDS, last - anyio.current_time())):
                await ending.wait()
        yield BYE

    async def _snapshot(self) -> str:
        try:
            return f"data: {await self._read()}\n\n"
        except MachineError:
            return TROUBLE


class Events(ResponseBody):
    """The body of one stream; leaves `streams` when it ends, however that comes about."""

    def __init__(self, events: AsyncGenerator[str, None], streams: WeakSet[Events]) -> None:
        self._events = events
        self._streams = streams

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._streams.discard(self)
        await self._events.aclose()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._events


FORM = "application/x-www-form-urlencoded"
SEE_OTHER = 303
OWN_ORIGIN = {"Referrer-Policy": "same-origin"}  # without it browsers send `Origin: null` with our own forms


class OpsPages:
    """The handlers, around the metrics of all workers and the notes of the health check."""

    def __init__(self, parts: Parts, access: OpsAccess, pages: Pages, version: str) -> None:
        self._reader = parts.reader
        self._health = parts.health
        self._access = access
        self._pages = pages
        self._version = version
        self._root = parts.settings.root
        self._catcher = parts.caught_mails is not None and parts.settings.ops_token is None
        self._session = OpsSession(parts.settings, access)
        self._stream = OpsStream(self._snapshot)

    async def dashboard(self) -> Response:
        """Show the page; a browser without a session is sent to sign in."""
        if wants_html() and self._session.is_wanting():
            return self._see("/ops/session")
        await self._session.check()
        return self._page("ops.html", signed_in=self._session.needed, catcher=self._catcher)

    async def events(self) -> Response:
        """Answer with the live feed."""
        await self._session.check()
        return self._stream.answer()

    async def sign_in_page(self) -> Response:
        """Ask for the token, where there is one."""
        if not self._session.needed:
            return self._see("/ops")
        return self._page("ops_session.html")

    async def sign_in(self) -> Response:
        """Exchange the token for a session; raises OpsTokenMissing, or RateLimited for a client that guesses."""
        self._session.check_origin()
        if not self._session.needed:
            return self._see("/ops")
        await self._access.check_token(_token(await _form()))
        answer = self._see("/ops")
        answer.headers["Set-Cookie"] = self._session.cookie(self._session.value())
        return answer

    async def sign_out(self) -> Response:
        """Take the session back from the browser."""
        self._session.check_origin()
        answer = self._see("/ops/session")
        answer.headers["Set-Cookie"] = self._session.cookie("", lifetime=0)
        return answer

    async def _snapshot(self) -> str:
        shown = snapshot(await self._reader.read(), await self._health.notes(), self._version)
        return to_json(shown).decode()

    def _page(self, template: str, *, signed_in: bool = False, catcher: bool = False) -> Response:
        answer = self._pages.page(template, version=self._version, signed_in=signed_in, catcher=catcher)
        answer.headers.update(OWN_ORIGIN)
        return answer

    def _see(self, path: str) -> Response:
        return response("", "text/plain; charset=utf-8", SEE_OTHER, {"Location": f"{self._root}{path}"})


async def _form() -> dict[str, list[str]]:
    """Return the fields of the form that was sent; raises UnsupportedMedia for anything else."""
    media, _ = parse_options_header(request.headers.get("Content-Type", ""))
    if media.lower() != FORM:
        raise UnsupportedMedia(f"Send the token as {FORM}.")
    return parse_qs((await body()).decode(errors="replace"))


def _token(form: dict[str, list[str]]) -> str:
    given = form.get("token", [])
    return given[0].strip() if len(given) == 1 else ""
