"""A route that does nothing, to know what the framework itself costs here."""

from __future__ import annotations

from quart import Quart

app = Quart(__name__)


@app.post("/nothing")
async def nothing() -> tuple[dict[str, str], int]:
    """Answer at once."""
    return {"status": "ok"}, 201
