from __future__ import annotations

import http.client
import os
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.e2e.instance import HOST, running
from tests.faults.under_test import patience

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.instance import Instance

BYE = b"event: bye\ndata: This worker ends. Connecting to another one.\n\n"


def stream(instance: Instance) -> http.client.HTTPResponse:
    """Open a live feed and read its first lines."""
    connection = http.client.HTTPConnection(HOST, instance.port, timeout=20)
    connection.request("GET", "/ops/events")
    answer = connection.getresponse()
    if answer.status != http.HTTPStatus.OK:  # a worker that leaves was still there
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")
        connection.close()
        return stream(instance)
    assert answer.getheader("Content-Type") == "text/event-stream"
    assert answer.readline() == b"retry: 1000\n"
    while not answer.readline().startswith(b"data: {"):
        pass
    return answer


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_streams_end_when_their_worker_has_to_leave(loop: str, number: signal.Signals, data_dir: Path) -> None:
    """A reload and a stop end every stream with a good-bye; the stop waits for none, and the service ends in order."""
    with running(data_dir, loop, {"GRACE_SECONDS": "20"}) as instance:
        streams = [stream(instance) for _ in range(5)]
        began = time.monotonic()
        os.kill(instance.pid, number)
        assert all(each.read().endswith(BYE) for each in streams)
        if number == signal.SIGTERM:
            assert time.monotonic() - began < patience(2.0)
        else:
            stream(instance).close()
