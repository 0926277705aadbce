"""HTTP/1.1 as one connection speaks it: strict about where a head ends, and every refusal is a problem (RFC 9457).

Hypercorn answers what h11 refuses with an empty body, waves every `Expect: 100-continue` through, and takes heads of
any size that come in one piece; h11 takes a bare LF for a line's end, which not every proxy in front does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import h11
from hypercorn.events import Closed, RawData
from hypercorn.protocol.h11 import H11Protocol
from loguru import logger

from service.http.edge import UNKNOWN
from service.http.edge_checks import MOST_HEADER_BYTES
from service.http.edge_headers import SECURITY
from service.http.errors import HeadersTooLarge, MalformedRequest
from service.http.json_gate import MOST_BYTES
from service.http.problem_answers import MEDIA, answer_to

if TYPE_CHECKING:
    from hypercorn.events import Event
    from hypercorn.typing import H11SendableEvent

HEAD_END = re.compile(rb"\n\r?\n")
BARE_LF = re.compile(rb"(?<!\r)\n")
MOST_HEAD_BYTES = MOST_HEADER_BYTES + 4096  # with the separators, which the edge does not count
TOO_LARGE = 431


class StrictConnection(h11.Connection):
    """h11's server side, without the heads that it lets through.

    What comes after a connection's last request is dropped (RFC 9112, 9.6). h11 calls it an error, and Hypercorn would
    cut off the last answer for it.
    """

    over = False  # the peer is gone

    @property
    def wants_more(self) -> bool:
        """Whether what comes can still be a request."""
        return not self.over and self.their_state is not h11.MUST_CLOSE

    def receive_data(self, data: bytes) -> None:
        """Take what came, unless nothing more is wanted."""
        if self.wants_more:
            super().receive_data(data)

    def next_event(self) -> Any:  # noqa: ANN401 - as h11 has it
        """Return the next event; raises RemoteProtocolError for a head with a bare LF, or too large a one."""
        if not self.wants_more:
            return h11.NEED_DATA
        if self.their_state is h11.IDLE:
            self._check_head()
        return super().next_event()

    def _check_head(self) -> None:
        waiting, _ = self.trailing_data
        waiting = waiting[: MOST_HEAD_BYTES + 4]
        end = HEAD_END.search(waiting)
        head = waiting if end is None else waiting[: end.end()]
        if len(head) > MOST_HEAD_BYTES:
            raise h11.RemoteProtocolError("the head is too large", error_status_hint=TOO_LARGE)
        if BARE_LF.search(head):
            raise h11.RemoteProtocolError("a line ends without CR")


class OneProtocol(H11Protocol):
    """HTTP/1.1 that never becomes anything else: no offer to upgrade is taken (RFC 9110, 7.8), not WebSocket either."""

    def __init__(self, *arguments: Any, **named: Any) -> None:  # noqa: ANN401 - Hypercorn's own
        super().__init__(*arguments, **named)
        self.connection: StrictConnection = StrictConnection(h11.SERVER, self.config.h11_max_incomplete_size)
        self._head = b""

    async def handle(self, event: Event) -> None:
        """Take what came; with the peer's end nothing waits any longer for its next request's turn."""
        if isinstance(event, Closed):
            self.connection.over = True
        await super().handle(event)
        if self.connection.over:
            await self.can_read.set()

    async def _check_protocol(self, event: h11.Request) -> None:
        pass

    async def _create_stream(self, request: h11.Request) -> None:
        """Begin a request; a body that will be refused unread is not asked for either (RFC 9110, 10.1.1)."""
        plain = [(name, value) for name, value in request.headers.raw_items() if name.lower() != b"upgrade"]
        if len(plain) < len(request.headers):
            request = h11.Request(
                method=request.method, target=request.target, headers=plain, http_version=request.http_version
            )
        lengths = [value for name, value in request.headers if name == b"content-length"]
        if any(int(value) > MOST_BYTES for value in lengths):
            self.connection.client_is_waiting_for_100_continue = False
        await super()._create_stream(request)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Send what the event makes; a head of a known length leaves with its content: one write costs what two do."""
        try:
            data = self.connection.send(event) or b""
        except h11.LocalProtocolError:
            if self.connection.their_state is not h11.ERROR:
                raise
            return
        data, self._head = self._head + data, b""
        if isinstance(event, h11.Response) and any(name == b"content-length" for name, _ in event.headers):
            self._head = data
        elif data:
            await self.send(RawData(data=data))

    async def _send_error_response(self, status_code: int) -> None:
        """Answer what is no request, as the edge answers what is none of ours; the connection ends with it."""
        error = HeadersTooLarge() if status_code == TOO_LARGE else MalformedRequest("The request is not HTTP/1.1.")
        answer, request_id = answer_to(error), uuid4().hex
        body = answer.body.encode()
        own = {b"content-type": MEDIA.encode(), b"content-length": str(len(body)).encode(), b"connection": b"close"}
        headers = {**SECURITY, **own, b"x-request-id": request_id.encode()}
        added = [pair for pair in self.config.response_headers("h11") if pair[0] != b"connection"]
        await self._send_h11_event(h11.Response(status_code=answer.status, headers=[*headers.items(), *added]))
        await self._send_h11_event(h11.Data(data=body))
        await self._send_h11_event(h11.EndOfMessage())
        logger.info("request", request_id=request_id, route=UNKNOWN, status=answer.status, ms=0.0)
