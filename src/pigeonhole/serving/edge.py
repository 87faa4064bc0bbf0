"""The edge, in pure ASGI, around everything else: limits before work, a request id, problem+json for whatever goes wrong.

The body is counted while it is read, so a body without a length, or with a false one, costs no more than the cap.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pigeonhole.prediction_log import new_id
from pigeonhole.serving.door import Door
from pigeonhole.serving.journal import Request, current, new_trace_id, requests, traceparent_of
from pigeonhole.serving.problem import MEDIA_TYPE, OVERLOADED_CODE, Problem
from pigeonhole.serving.telemetry import Telemetry
from pigeonhole.serving.tracing import Tracing, span_of_request

MAX_BODY_BYTES = 1 << 20
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10
MAX_URL_BYTES = 8 << 10
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # any other word is a client's own
# Of a header that stands twice, a proxy in front may have read the other one.
SINGLE_HEADERS = (b"content-type", b"content-encoding", b"idempotency-key", b"x-canary-key", b"x-request-timeout-ms")

HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

logger = logging.getLogger(__name__)


class Edge:
    """ASGI middleware. Leaves `request_id` and `began` (time.perf_counter) in the scope's state."""

    def __init__(self, app: ASGIApp, telemetry: Telemetry, tracing: Tracing | None = None) -> None:
        self._app = app
        self._telemetry = telemetry
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # RFC 9110 9.3.2: as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        exchange = _Exchange(scope, receive, send)
        parent = traceparent_of(scope["headers"])
        span = self._tracing.request(exchange.method, parent) if self._tracing else None
        trace_id = f"{span.get_span_context().trace_id:032x}" if span else parent.trace_id if parent else new_trace_id()
        current.set(Request(exchange.request_id, trace_id))
        span_of_request.set(span)
        with self._telemetry.in_flight.track_inprogress():
            await self._answer(exchange)
        route = getattr(exchange.scope.get("route"), "path", "other")  # never the path itself: a client could invent a million
        seconds = time.perf_counter() - exchange.began
        self._telemetry.request(exchange.method, route, exchange.status, seconds, exchange.code == OVERLOADED_CODE)
        if self._tracing and span:
            self._tracing.end_request(span, exchange.method, route, exchange.status)
        if requests.isEnabledFor(logging.INFO):
            fields = {"method": exchange.method, "route": route, "status": exchange.status, "ms": round(seconds * 1000, 3)}
            requests.info("%s %s %d", exchange.method, route, exchange.status, extra={"fields": fields})

    async def _answer(self, exchange: "_Exchange") -> None:
        try:
            check_head(exchange.scope)
            await self._app(exchange.scope, exchange.receive, exchange.send)
        except Problem as problem:
            await exchange.refuse(problem)
        except (ClientDisconnect, asyncio.CancelledError):
            exchange.status = 499  # nobody is left to answer; nginx's number for it
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await exchange.refuse(Problem(500, "internal_error", "this is our mistake; the request id leads to it in the log"))


class _Exchange:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method = scope["method"] if scope["method"] in METHODS else "other"
        self.status = 0
        self.code = ""  # of the problem that was the answer
        self.request_id = _request_id(scope["headers"])
        self.began = time.perf_counter()
        scope.setdefault("state", {}).update(request_id=self.request_id, began=self.began)
        self._receive = receive
        self._send = send
        self._received_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._received_bytes += len(message.get("body", b""))
        if self._received_bytes > MAX_BODY_BYTES:
            raise _too_large()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {b"x-request-id": self.request_id.encode(), b"x-content-type-options": b"nosniff"}
            door: Door | None = self.scope["state"].get("door")
            if door is not None and door.is_ending:
                own[b"connection"] = b"close"
            message["headers"] = [*message["headers"], *own.items()]
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        if self.status:
            return  # half an answer is on its way already; the server closes the connection
        self.code = problem.code
        body = problem.body(self.request_id)
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
        encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": encoded})
        await self.send({"type": "http.response.body", "body": body})


def check_head(scope: Scope) -> None:
    """Raises Problem for what the request line and the headers alone give away."""
    headers: list[tuple[bytes, bytes]] = scope["headers"]
    if scope["http_version"] not in ("1.0", "1.1"):
        raise Problem(400, "invalid_http", "HTTP/1.1 is spoken here", {"connection": "close"})
    values: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    if not all(map(HOST.fullmatch, values.get(b"host", []))):
        raise Problem(
            400, "invalid_header", "host is a name or an address, with a port or without", {"connection": "close"}
        )  # RFC 9112 3.2
    if len(scope.get("raw_path", b"")) + len(scope["query_string"]) > MAX_URL_BYTES:
        raise Problem(414, "url_too_long", f"a URL has at most {MAX_URL_BYTES} bytes", {"connection": "close"})
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        limit = f"at most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them"
        raise Problem(431, "headers_too_large", limit, {"connection": "close"})
    lengths, encodings = values.get(b"content-length", []), values.get(b"transfer-encoding", [])
    if encodings and (lengths or scope["http_version"] == "1.0"):
        # RFC 9112 6.1: a proxy may have read the other one, and the rest of the body as a request of its own.
        detail = "content-length, HTTP/1.0 and transfer-encoding exclude each other"
        raise Problem(400, "ambiguous_length", detail, {"connection": "close"})
    for name in SINGLE_HEADERS:
        if len(values.get(name, [])) > 1:
            raise Problem(400, "invalid_header", f"{name.decode()} stands there more than once")
    if lengths and int(lengths[0]) > MAX_BODY_BYTES:
        raise _too_large()


def headers_of(scope: Scope) -> dict[str, str]:
    """As Starlette's `Headers`, where the first of several counts; it walks through all of them each time it is asked."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}


def check_content(headers: Mapping[str, str]) -> None:
    """Raises Problem for a body that is announced as anything but plain JSON in UTF-8."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "content_encoding", "send the body uncompressed", {"accept-encoding": "identity"})
    if not re.fullmatch(r'application/json\s*(;\s*charset="?utf-8"?\s*)?', headers.get("content-type", ""), re.IGNORECASE):
        raise Problem(415, "content_type", "the content-type has to be application/json", {"accept": "application/json"})


def deadline_asked(headers: Mapping[str, str]) -> float:
    """Seconds until the caller gives up, as its X-Request-Timeout-Ms says; for ever if it says nothing. Raises Problem."""
    value = headers.get("x-request-timeout-ms")
    if value is None:
        return math.inf
    if not re.fullmatch("[0-9]{1,9}", value):
        raise Problem(400, "invalid_header", "x-request-timeout-ms is a whole number of milliseconds")
    return int(value) / 1000


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Raises Problem for one that is none."""
    value = headers.get("idempotency-key")
    if value is not None and not re.fullmatch("[!-~]{1,255}", value):
        raise Problem(400, "invalid_header", "idempotency-key has 1 to 255 visible ASCII characters")
    return value


def _too_large() -> Problem:
    return Problem(413, "body_too_large", f"a body has at most {MAX_BODY_BYTES} bytes")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's, if it is harmless in a header and in a log line; else a new one."""
    (given, *more) = _values(headers, b"x-request-id") or [b""]
    return given.decode() if not more and re.fullmatch(rb"[A-Za-z0-9._-]{1,64}", given) else new_id()


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]
