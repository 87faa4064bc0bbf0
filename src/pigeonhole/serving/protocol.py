"""HTTP/1.1 on the socket: uvicorn's h11 protocol with deadlines for receiving a request and for taking its answer, and refusals
in problem+json.

uvicorn itself waits for ever for the rest of a head or of a body, and for a client to read: a thousand slow sockets stay open
until they choose to go.
"""

import asyncio
import functools
import re
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from pigeonhole.serving.door import Door, is_question
from pigeonhole.serving.edge import headers_too_large, url_too_long
from pigeonhole.serving.patience import Patience
from pigeonhole.serving.plain import Plain, PlainCycle, is_half_a_head, read
from pigeonhole.serving.problem import MEDIA_TYPE, Problem
from pigeonhole.serving.quick import Quick

HELD_BYTES = 64 << 10
LINGER_S = 1.0  # a client on a busy machine takes half of it to send what it has begun
MAX_PIECES = 1024  # of a body: 0.015 s of the loop; 256 KB of chunks with a byte each, which is what one read takes, are 0.26 s
MAX_HEAD_BYTES = 16 << 10  # that are kept while the rest of a head, or of a plain request, is waited for
LONGEST_HEAD = 32 << 10  # that is parsed at all: more than the edge lets in
HEAD_END = re.compile(rb"\n\r?\n")  # as h11 has it
TOO_LARGE = 431  # h11's hint, for a head that is not whole
EMPTY_LINE = b"\r\n"  # before a request it is nothing (RFC 9112 2.2): some clients send one after a body
REST_S = 5.0  # between two requests of a connection
RECEIVE_TIMEOUT_S = 10.0  # 1 MiB in ten seconds is 0.8 Mbit/s: slower than any line that is meant well
SEND_TIMEOUT_S = 20.0  # from when the system takes no more of an answer until it has taken all; the largest have 2 MB


class Pieces(h11.Connection):
    """h11's connection, for bodies in no more than MAX_PIECES pieces, which takes an empty line for no request.

    h11 has a limit for a head that is not whole; one that came at once is parsed, however long: 0.09 s for 20,000 headers.
    """

    count = 0
    refusal: Problem | None = None  # of what it raised an error for, where 400 does not say it

    def next_event(self) -> Any:
        is_head = self.their_state is h11.IDLE
        waiting = self.trailing_data[0] if is_head else b""
        if waiting.startswith(EMPTY_LINE):
            self._receive_buffer.maybe_extract_at_most(len(EMPTY_LINE))
        try:
            if len(waiting) > LONGEST_HEAD and not HEAD_END.search(waiting, len(EMPTY_LINE), LONGEST_HEAD):
                raise h11.RemoteProtocolError("the head is too long", TOO_LARGE)
            event = super().next_event()
        except h11.RemoteProtocolError as error:
            if is_head and error.error_status_hint == TOO_LARGE:
                self.refusal = headers_too_large() if b"\n" in waiting[len(EMPTY_LINE) : LONGEST_HEAD] else url_too_long()
            raise
        if isinstance(event, h11.Data):
            self.count += 1
            if self.count > MAX_PIECES:
                self.refusal = Problem(413, "too_many_chunks", f"a body comes in at most {MAX_PIECES} chunks")
                raise h11.RemoteProtocolError("too many pieces")
        elif isinstance(event, h11.Request):
            self.count = 0
        return event


class Protocol(H11Protocol):
    """One connection."""

    _held = b""  # what came while a plain request was answered
    _begun = b""  # the first piece of a question: most clients send its body after its head
    _plain: asyncio.Task[None] | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._clocks: Clocks = self.app_state["clocks"]
        self.conn: Pieces = Pieces(h11.SERVER, MAX_HEAD_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn itself
        """As uvicorn's, which asks the system for both addresses: nobody here does."""
        self.connections.add(self)
        self.transport = transport
        self.flow = FlowControl(transport)
        transport.set_write_buffer_limits(0)  # any byte that is left over is waited for by a clock
        self.scheme = "http"
        self._clocks.receiving.begin(self)

    def data_received(self, data: bytes) -> None:
        if isinstance(self.cycle, PlainCycle) and not self.cycle.response_complete:
            self._held += data
            if len(self._held) > HELD_BYTES:
                self.flow.pause_reading()
            return
        begun, self._begun = self._begun, b""
        data = begun + data
        door: Door = self.app_state["door"]
        if self._is_idle():
            data = data.removeprefix(EMPTY_LINE)
            if not data:
                return  # it rests, as before
            request = None if door.is_ending else read(data)
            is_plain = request is not None and not request.missing
            if door.is_shut and (is_plain or is_question(data)):
                self._turn_away(door.refuse())
                return
            if request is not None and is_plain:
                self._clocks.receiving.end(self)
                self._answer(request)
                return
            if not (begun or door.is_ending) and self._may_wait(data, request):  # byte by byte is the parser's
                self._unset_keepalive_if_required()
                self._clocks.receiving.begin(self)
                self._begun = data
                return
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._clocks.receiving.begin(self)
        else:
            self._clocks.receiving.end(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, which tells the parser too."""
        self._clocks.receiving.end(self)
        self._clocks.resting.end(self)
        self._clocks.sending.end(self)
        self.connections.discard(self)
        self.flow.resume_writing()
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        if cycle is not None:
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        self.cycle = None  # type: ignore[assignment]  # it holds this connection, which would wait for the garbage collector
        if self._plain is not None:
            # What waits for the model is not computed for nobody. A request with an idempotency-key is none of these: its answer
            # is kept for the caller who comes back.
            self._plain.cancel()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._clocks.sending.begin(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._clocks.sending.end(self)

    def send_400_response(self, msg: str) -> None:
        self._refuse(_as_http(self.conn.refusal or Problem(400, "invalid_http", "this is not HTTP/1.1 as RFC 9112 has it")))

    def on_response_complete(self) -> None:
        """As uvicorn's, which sets a timer for each connection's rest."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._clocks.resting.begin(self)
        self.flow.resume_reading()
        if self.conn.our_state is h11.DONE and self.conn.their_state is h11.DONE:
            self.conn.start_next_cycle()
            self.handle_events()
        if self._held and not self.transport.is_closing():
            data, self._held = self._held, b""
            self.data_received(data)

    def shutdown(self) -> None:
        """A connection with nothing to answer lingers: a request may be on its way, and would be broken off unanswered."""
        door: Door = self.app_state["door"]
        door.is_ending = True
        if self._begun:
            self.data_received(b"")  # the parser's from now on, and answered when it is whole
        if self._is_answering():
            super().shutdown()
        else:
            self.loop.call_later(LINGER_S, self._end)

    def time_out(self) -> None:
        """The request did not come."""
        self._refuse(_too_late(RECEIVE_TIMEOUT_S))

    def break_off(self) -> None:
        """The answer is not taken: closing would wait until it is."""
        self.transport.abort()

    def _unset_keepalive_if_required(self) -> None:
        self._clocks.resting.end(self)

    def _end(self) -> None:
        if not self.transport.is_closing():
            super().shutdown()

    def _is_answering(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _is_idle(self) -> bool:
        """Whether the next byte begins a request."""
        conn = self.conn
        return not self._is_answering() and conn.our_state is conn.their_state is h11.IDLE and not conn.trailing_data[0]

    def _may_wait(self, data: bytes, request: Plain | None) -> bool:
        """Whether the rest of a question is waited for here. What its head alone refuses, the long way refuses at once."""
        if request is None:
            return len(data) <= MAX_HEAD_BYTES and is_half_a_head(data)
        quick: Quick = self.app_state["quick"]
        return request.missing <= MAX_HEAD_BYTES - len(data) and quick.lets_in(request)

    def _answer(self, request: Plain) -> None:
        """As handle_events of uvicorn's protocol does."""
        self._unset_keepalive_if_required()
        cycle = PlainCycle(self.transport, self.flow, self.on_response_complete)
        self.cycle = cycle  # type: ignore[assignment]  # has all that uvicorn asks of one
        quick: Quick = self.app_state["quick"]
        door: Door = self.app_state["door"]
        answering = cycle.run(quick.answer, request, self.server_state.default_headers, door)
        self._plain = self.loop.create_task(answering)  # at the end it is this connection that uvicorn waits for

    def _turn_away(self, refusal: bytes) -> None:
        """Answer past the parser; the connection rests as after any answer."""
        self._unset_keepalive_if_required()
        self._clocks.receiving.end(self)
        self.transport.write(refusal)
        self._clocks.resting.begin(self)

    def _refuse(self, answer: bytes) -> None:
        """Answer past the application, unless it has begun to answer already, and close."""
        if not self.transport.is_closing():
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                self.transport.write(answer)
            cycle: RequestResponseCycle | None = self.cycle  # None before the first request
            if cycle is not None:
                cycle.disconnected = True
            self.transport.close()


class Clocks:
    """Of all connections of a loop. A request's runs from the first sign of it, or of its connection, to its last byte; an
    answer's while some of it is left over.
    """

    def __init__(self) -> None:
        self.receiving = Patience(RECEIVE_TIMEOUT_S, Protocol.time_out)
        self.resting = Patience(REST_S, Protocol.timeout_keep_alive_handler)
        self.sending = Patience(SEND_TIMEOUT_S, Protocol.break_off)


@functools.cache
def _too_late(limit_s: float) -> bytes:
    return _as_http(Problem(408, "request_timeout", f"a request has to be here within {limit_s:g} s"))


def _as_http(problem: Problem) -> bytes:
    body = problem.body()
    head = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        f"content-type: {MEDIA_TYPE}",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
