"""Says which tests belong to one worker of pytest-xdist."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

LOOP = re.compile(r"(tests/(?:e2e|faults/hostile))/.*\[(uvloop|trio)\b")  # a service for each loop
SERVERS = re.compile(r"(tests/faults/test_fault)_(?:mail|postgres|redis)\.py")  # one whose servers fail
MODULE = re.compile(r"(tests/faults/test_processes_(?:kills|up)\.py)")


class Workshare(LoadScopeScheduling):
    """Gives each test to whoever is free, except those that share a running service: they go to one worker.

    `--dist loadgroup` cannot say so: pytest 9.2 no longer reads the id into which pytest-xdist 3.8 writes the group.
    """

    def _split_scope(self, nodeid: str) -> str:
        found = LOOP.match(nodeid) or SERVERS.match(nodeid) or MODULE.match(nodeid)
        return " ".join(found.groups()) if found else nodeid
