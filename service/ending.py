"""Where a request's scope carries the event that says: this worker is about to leave, end what has no end of its own.

The worker sets it when it is told to drain, to retire or to stop. Answers with an end of their own go on.
"""

from __future__ import annotations

from typing import Final

ENDING: Final = "vestibule.ending"  # an anyio.Event; absent where no worker serves, as in tests of the application
