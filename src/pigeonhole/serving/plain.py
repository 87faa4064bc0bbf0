"""The commonest request, without a parser: one whole `POST /predict` in one piece, with none but well-known headers, each once.

h11 takes as long for a request as all the rest of the way to the batcher. Whatever is unusual in any way is left to it (`read`
gives None), so what is refused, and how, is decided in one place. The application sees the same scope on both ways.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.flow_control import FlowControl

REQUEST_LINES = {b"POST /predict HTTP/1.1": "/predict", b"POST /v1/predict HTTP/1.1": "/v1/predict"}
HEADERS = frozenset(
    {
        b"accept",
        b"accept-encoding",
        b"accept-language",
        b"authorization",
        b"connection",
        b"content-length",
        b"content-type",
        b"host",
        b"traceparent",
        b"user-agent",
        b"x-api-key",
        b"x-request-id",
    }
)
VISIBLE = bytes(range(0x20, 0x7F))
PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plain:
    """A request as ASGI has it: names in lower case, values without spaces around them."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes


def read(data: bytes) -> Plain | None:
    head, end, body = data.partition(b"\r\n\r\n")
    line, *lines = head.split(b"\r\n")
    path = REQUEST_LINES.get(line)
    if not end or path is None:
        return None
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" ")
        if not colon or name not in HEADERS or name in headers or not value or value.translate(None, VISIBLE):
            return None
        headers[name] = value
    length = headers.get(b"content-length", b"")
    is_whole = length.isdigit() and len(length) <= 7 and int(length) == len(body)
    if not is_whole or b"host" not in headers or headers.get(b"connection", b"keep-alive").lower() != b"keep-alive":
        return None
    return Plain(path, list(headers.items()), body)


class PlainCycle:
    """A request and its answer: what uvicorn's own cycle is to h11, for an answer that goes out in one piece."""

    def __init__(
        self,
        scope: Scope,
        body: bytes,
        transport: asyncio.Transport,
        flow: FlowControl,
        default_headers: Iterable[tuple[bytes, bytes]],
        on_response: Callable[[], None],
    ) -> None:
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.message_event = asyncio.Event()  # set when there is nothing more to wait for
        self._scope = scope
        self._body: bytes | None = body
        self._transport = transport
        self._flow = flow
        self._default_headers = default_headers
        self._on_response = on_response
        self._head = b""
        self._pieces: list[bytes] = []

    async def run(self, app: ASGIApp) -> None:
        try:
            await app(self._scope, self._receive, self._send)
        except Exception:
            logger.exception("a request failed outside the edge")
        finally:
            if not self.response_complete and not self.disconnected:
                self._transport.close()

    async def _receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.message_event.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self.disconnected:
            return
        if message["type"] == "http.response.start":
            headers = [*self._default_headers, *message["headers"], *([] if self.keep_alive else [(b"connection", b"close")])]
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            self._head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (message["status"], PHRASES.get(message["status"], b""), lines)
            return
        self._pieces.append(message.get("body", b""))
        if message.get("more_body"):
            return
        if self._flow.write_paused:
            with contextlib.suppress(ConnectionError):
                await self._flow.drain()
        self._transport.write(self._head + b"".join(self._pieces))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self._transport.close()
        self._on_response()
