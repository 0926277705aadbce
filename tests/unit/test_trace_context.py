from __future__ import annotations

import pytest

from service.telemetry.trace_context import of_headers, trace_id

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"{GOOD}-extra",
        f" {GOOD}",
        f"{GOOD}\n",
        f"00-{TRACE}-{SPAN}-0\N{ARABIC-INDIC DIGIT ONE}",
    ],
)
def test_what_is_no_trace_context_is_none(text: str) -> None:
    """Only the form of the recommendation, version 00, is taken from a caller."""
    assert of_headers([(b"traceparent", text.encode())]) is None
    assert trace_id(text) is None


def test_a_trace_context_is_taken_and_names_its_trace() -> None:
    """Header names have no case; the trace id is what log lines carry."""
    assert of_headers([(b"host", b"x"), (b"TraceParent", GOOD.encode())]) == GOOD
    assert trace_id(GOOD) == TRACE
    assert trace_id(None) is None


def test_two_trace_contexts_are_none() -> None:
    """A request with two of them belongs to no trace of its caller's."""
    assert of_headers([(b"traceparent", GOOD.encode())] * 2) is None
