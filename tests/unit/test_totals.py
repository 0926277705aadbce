"""The totals of one worker, and how those of many become one."""

from __future__ import annotations

import pytest

from actors.domain.histogram import Histogram
from actors.domain.totals import (
    OTHER,
    ROUTE_LIMIT,
    SLICE_SECONDS,
    WINDOW_SECONDS,
    Totals,
    Window,
    WorkerReport,
    first_slice,
    slice_of,
    summed,
    together,
)

REGISTER = "POST /api/v1/users/register"
ACTIVATE = "POST /api/v1/users/activate"
NOW = 1_800_000_000.0


def report_of(totals: Totals, now: float) -> WorkerReport:
    """Return a report with all slices of the window."""
    return WorkerReport(totals.worker, 1, totals.totals(), slices=totals.slices(now))


def counted(*latencies: float, worker: str = "w", now: float = NOW) -> WorkerReport:
    """Return the report of a worker that has answered registrations."""
    totals = Totals(worker)
    totals.count([(REGISTER, 201, each) for each in latencies], now)
    return report_of(totals, now)


def test_requests_are_counted_by_route_and_status_in_buckets_and_as_a_sum() -> None:
    """A latency on a bound belongs to that bound; one that makes no sense counts as nothing."""
    totals = Totals("w")
    totals.count([(REGISTER, 201, 10.0), (REGISTER, 201, 10.001), (REGISTER, 409, 20_000.0), (REGISTER, 409, -1)], NOW)
    assert totals.totals() == {
        f"requests|{REGISTER}|201": 2,
        f"requests|{REGISTER}|409": 2,
        f"bucket|{REGISTER}|5": 1,
        f"bucket|{REGISTER}|10": 1,
        f"bucket|{REGISTER}|25": 1,
        f"bucket|{REGISTER}|+Inf": 1,
        f"sum|{REGISTER}": 20_020.001,
    }


def test_labels_are_capped_and_cannot_forge_a_field() -> None:
    """More routes than the cap are counted under one label, and none is lost; the separator is replaced."""
    totals = Totals("w")
    totals.count([("GET /a|b", 200, 1.0)], NOW)
    totals.count([(f"GET /{number}", 200, 1.0) for number in range(ROUTE_LIMIT + 50)], NOW)
    requests = {name: n for name, n in totals.totals().items() if name.startswith("requests|")}
    assert requests["requests|GET /a/b|200"] == 1
    assert requests[f"requests|{OTHER}|200"] == 51
    assert sum(requests.values()) == ROUTE_LIMIT + 51


def test_counters_of_the_runtime_never_fall() -> None:
    """A counter that starts over is kept at its maximum."""
    totals = Totals("w")
    for value in (2, 0, 3):
        totals.raise_to({"restarts|a": value})
        assert totals.totals()["restarts|a"] == max(value, 2)


def test_slices_are_minutes_and_leave_the_window() -> None:
    """Each minute has a slice; those that the store has are not given again, those past the window are forgotten."""
    totals = Totals("w")
    for minute in range(3):
        totals.count([(REGISTER, 201, 1.0)], NOW + minute * SLICE_SECONDS)
    end = NOW + 2 * SLICE_SECONDS
    assert sorted(totals.slices(end)) == [slice_of(NOW + minute * SLICE_SECONDS) for minute in range(3)]
    assert sorted(totals.slices(end, slice_of(end))) == [slice_of(end)]
    later = end + WINDOW_SECONDS
    assert sorted(totals.slices(later)) == [first_slice(later)]
    assert totals.slices(later + SLICE_SECONDS) == {}


def test_a_clock_that_goes_back_loses_no_latency() -> None:
    """A slice that is opened again keeps what it had."""
    totals = Totals("w")
    for now in (NOW, NOW + SLICE_SECONDS, NOW, NOW + SLICE_SECONDS):
        totals.count([(REGISTER, 201, 1.0)], now)
    sizes = {
        start: Histogram.unpack(each[REGISTER]).count for start, each in totals.slices(NOW + SLICE_SECONDS).items()
    }
    assert sizes == {slice_of(NOW): 2, slice_of(NOW + SLICE_SECONDS): 2}


def test_what_several_stores_know_of_a_worker_is_joined() -> None:
    """The newest totals, the levels of the newest report that has some, all slices."""
    old = WorkerReport("w", 1, {"a": 1, "b": 5}, {"level": 1}, {0: {REGISTER: b"old"}, 60: {REGISTER: b"old"}})
    new = WorkerReport("w", 2, {"a": 2, "b": 6}, {}, {60: {REGISTER: b"new"}}, leaving=True)
    other = WorkerReport("o", 1, {"a": 10})
    joined = together([new, other, old])
    assert joined["w"] == WorkerReport(
        "w", 2, {"a": 2, "b": 6}, {"level": 1}, {0: {REGISTER: b"old"}, 60: {REGISTER: b"new"}}, leaving=True
    )
    assert summed(joined.values(), {"w": {"a": 2, "b": 3}}) == {"a": 10, "b": 3}


def test_the_window_merges_all_workers_and_leaves_out_what_is_older() -> None:
    """Latencies of two workers and two minutes are one histogram; an old slice in a store changes no percentile."""
    earlier = counted(5000.0, worker="b", now=NOW - SLICE_SECONDS)
    old = counted(9999.0, worker="c", now=NOW - WINDOW_SECONDS - SLICE_SECONDS)
    merged = Window().over([counted(10.0, 20.0), earlier, old], NOW)[REGISTER]
    assert (merged.count, merged.low, merged.high) == (3, 10.0, 5000.0)
    assert merged.quantile(0.5) == pytest.approx(20, rel=0.01)


def test_a_window_sees_what_has_changed_since() -> None:
    """Reading again gives the same figures, and a new latency in an old slice is seen."""
    window, mine, other = Window(), counted(1.0), counted(2.0, worker="b")
    for reports, count in ([mine], 1), ([mine], 1), ([mine, other], 2):
        assert window.over(reports, NOW)[REGISTER].count == count


def test_a_damaged_slice_is_left_out_and_spoils_no_other() -> None:
    """What another version wrote, or what is damaged, costs its own latencies only."""
    empty = Histogram().pack()
    damaged = WorkerReport("bad", 1, {}, slices={slice_of(NOW): {REGISTER: b"rubbish", ACTIVATE: b"", "empty": empty}})
    window = Window().over([damaged, counted(5.0)], NOW)
    assert {route: histogram.count for route, histogram in window.items()} == {REGISTER: 1}
