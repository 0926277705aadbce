"""A small HTTP/1.1 client over kept connections, so that the load costs less than what it loads."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

GOOD = range(200, 300)  # the class of success (RFC 9110, 15.3)
ANSWER_SECONDS = 60.0  # more is no measurement but a fault


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its status, its body, the milliseconds it took, and when to come again (0: no matter)."""

    status: int
    body: bytes
    milliseconds: float
    retry_after: float = 0.0

    def json(self) -> Any:  # noqa: ANN401 - whatever was sent
        """Return the body as JSON."""
        return json.loads(self.body)


class Connection:
    """One kept connection, opened again when the server closes it."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @classmethod
    def like(cls, other: Connection) -> Connection:
        """Return another one to the same server."""
        return cls(other._host, other._port)

    async def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> Answer:
        """Send one request and return its answer; raises OSError and EOFError."""
        begun = perf_counter()
        if self._streams is not None and self._streams[0].at_eof():  # closed by the server while it was idle
            self.close()
        reader, writer = self._streams or await asyncio.open_connection(self._host, self._port)
        self._streams = (reader, writer)
        content = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n" if body else ""
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{headers}{content}\r\n"
        writer.write(head.encode() + body)
        async with asyncio.timeout(ANSWER_SECONDS):
            status, received, fields = await self._answer(reader)
        return Answer(status, received, (perf_counter() - begun) * 1000, float(fields.get("retry-after", "0")))

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, bytes, dict[str, str]]:
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection", "").lower() == "close":
            self.close()
        return int(lines[0].split()[1]), body, fields

    def close(self) -> None:
        """Close it."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


@dataclass(slots=True)
class Load:
    """What a closed loop saw: milliseconds of each answer, by status, and how long it ran."""

    seconds: float = 0.0
    milliseconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)

    def note(self, answer: Answer) -> None:
        """Take one answer in."""
        self.milliseconds.append(answer.milliseconds)
        self.statuses[answer.status] = self.statuses.get(answer.status, 0) + 1

    def percentile(self, share: float) -> float:
        """Return the milliseconds that `share` of the answers did not exceed."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0

    @property
    def rate(self) -> float:
        """Answers of 2xx a second."""
        good = sum(count for status, count in self.statuses.items() if status in GOOD)
        return good / self.seconds if self.seconds else 0.0


async def closed_loop(
    connections: list[Connection], count: int, ask: Callable[[Connection, int], Awaitable[Answer]]
) -> Load:
    """Send `count` requests, each connection its next one when it has its answer; a 503 is sent again when told."""
    load = Load()
    numbers = iter(range(count))

    async def client(connection: Connection) -> None:
        for number in numbers:
            answer = await ask(connection, number)
            load.note(answer)
            while answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
                await asyncio.sleep(answer.retry_after)  # as it was told
                answer = await ask(connection, number)
                load.note(answer)

    begun = perf_counter()
    async with asyncio.TaskGroup() as clients:
        for connection in connections:
            clients.create_task(client(connection))
    load.seconds = perf_counter() - begun
    return load


async def open_loop(
    connections: list[Connection], rate: float, count: int, ask: Callable[[Connection, int], Awaitable[Answer]]
) -> Load:
    """Send `count` requests at fixed times, `rate` a second; latency counts from the intended start."""
    load, idle = Load(), list(connections)

    async def client(number: int, due: float) -> None:
        connection = idle.pop() if idle else Connection.like(connections[0])
        answer = await ask(connection, number)
        idle.append(connection)
        load.note(Answer(answer.status, b"", (perf_counter() - due) * 1000))

    begun = perf_counter()
    async with asyncio.TaskGroup() as clients:
        for number in range(count):
            due = begun + number / rate
            await asyncio.sleep(max(0.0, due - perf_counter()))  # until its time
            clients.create_task(client(number, due))
    load.seconds = perf_counter() - begun
    return load


async def probe(connection: Connection, path: str, stop: asyncio.Event, every: float = 0.02) -> Load:
    """Ask for `path` at fixed times until `stop`; latency counts from the intended start, so that stalls show."""
    load = Load()
    begun = perf_counter()
    due = begun
    while not stop.is_set():
        answer = await connection.request("GET", path)
        load.note(Answer(answer.status, b"", (perf_counter() - due) * 1000))
        due = max(due + every, perf_counter() - 1.0)
        await asyncio.sleep(max(0.0, due - perf_counter()))  # until its time
    load.seconds = perf_counter() - begun
    return load
