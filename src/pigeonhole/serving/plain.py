"""The commonest request, without a parser: a whole `POST /predict` in a piece or two, with well-known headers alone, each once.

h11 takes as long for a request as all the rest of the way to the batcher. Whatever is unusual in any way is left to it and to the
edge (`read` gives None), so what is refused of a head, and how, is decided in one place. quick.py answers what is plain.
"""

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus

import msgspec
from uvicorn.protocols.http.flow_control import FlowControl

from pigeonhole.serving.door import QUESTIONS, Door
from pigeonhole.serving.edge import HOST, MAX_BODY_BYTES, MAX_HEADER_BYTES

REQUEST_LINES = (b"POST /predict HTTP/1.1", b"POST /v1/predict HTTP/1.1")
HEADERS = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"cache-control",
        b"connection",
        b"content-length",
        b"content-type",
        b"cookie",
        b"forwarded",
        b"host",
        b"origin",
        b"referer",
        b"traceparent",
        b"user-agent",
        b"via",
        b"x-api-key",
        b"x-cloud-trace-context",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"x-request-id",
    }
)
VISIBLE = bytes(range(0x20, 0x7F))
KNOWN_HEADS = 512  # a client sends the same one again and again, but for the length of its body
KNOWN_HEAD_BYTES = 1024
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}


class Plain(msgspec.Struct, frozen=True):
    """A request as ASGI has it: names in lower case, each once, values without spaces around them."""

    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    missing: int = 0  # bytes of its body that have not come


def read(data: bytes) -> Plain | None:
    """A plain request that is whole, or of which nothing but the rest of its body is missing."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end or len(head) > MAX_HEADER_BYTES:
        return None
    found = _known_head(head) if len(head) <= KNOWN_HEAD_BYTES else _read_head(head)
    if found is None or len(body) > found[1]:
        return None
    headers, length = found
    return Plain(headers, body, length - len(body))


def is_half_a_head(data: bytes) -> bool:
    """Of a question."""
    return b"\r\n\r\n" not in data and any(data.startswith(line[: len(data)]) for line in QUESTIONS)


def _read_head(head: bytes) -> tuple[tuple[tuple[bytes, bytes], ...], int] | None:
    """Its headers, and how long its body is."""
    line, *lines = head.split(b"\r\n")
    if line not in REQUEST_LINES:
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" ")
        if not colon or name not in HEADERS or name in headers or not value or value.translate(None, VISIBLE):
            return None
        headers[name] = value
    length = headers.get(b"content-length", b"")
    if (
        not (length.isdigit() and len(length) <= 7 and int(length) <= MAX_BODY_BYTES)
        or not HOST.fullmatch(headers.get(b"host", b"\0"))
        or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    ):
        return None
    return tuple(headers.items()), int(length)


_known_head = functools.lru_cache(KNOWN_HEADS)(_read_head)


class Answer(msgspec.Struct, frozen=True):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    def on_the_wire(self, default_headers: Iterable[tuple[bytes, bytes]]) -> bytes:
        lines = b"".join([b"%b: %b\r\n" % header for header in (*default_headers, *self.headers)])
        return b"HTTP/1.1 %d %b\r\n%b\r\n%b" % (self.status, PHRASES[self.status], lines, self.body)


Way = Callable[[Plain], Awaitable[Answer]]


class PlainCycle:
    """A request and its answer: what uvicorn's own cycle is to h11, for an answer that goes out in one piece."""

    message_event = asyncio.Event()  # uvicorn sets it when a connection is lost; nobody waits for it

    def __init__(self, transport: asyncio.Transport, flow: FlowControl, on_response: Callable[[], None]) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self._transport = transport
        self._flow = flow
        self._on_response = on_response

    async def run(self, answer: Way, request: Plain, default_headers: Iterable[tuple[bytes, bytes]], door: Door) -> None:
        try:
            found = await answer(request)
            if self._flow.write_paused:
                with contextlib.suppress(ConnectionError):
                    await self._flow.drain()
            if self.disconnected:
                return
            is_last = door.is_ending or not self.keep_alive
            if is_last:
                found.headers.append((b"connection", b"close"))
            self._transport.write(found.on_the_wire(default_headers))
            self.response_complete = True
        finally:
            if not self.response_complete and not self.disconnected:
                self._transport.close()
        if is_last:
            self._transport.close()
        self._on_response()
