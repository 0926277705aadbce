"""Says which tests belong to one worker of pytest-xdist."""

from __future__ import annotations

import re

from xdist.scheduler import LoadScopeScheduling

END_TO_END = re.compile(r"tests/e2e/.*\[(?P<loop>uvloop|trio)\b")


class Workshare(LoadScopeScheduling):
    """Gives each test to whoever is free, except those of one loop end to end: they share running services.

    `--dist loadgroup` cannot say so: pytest 9.2 no longer reads the id into which pytest-xdist 3.8 writes the group.
    """

    def _split_scope(self, nodeid: str) -> str:
        found = END_TO_END.match(nodeid)
        return f"end to end on {found['loop']}" if found else nodeid
