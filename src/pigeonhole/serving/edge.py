"""The edge, in pure ASGI, around everything else: limits before work, a request id, problem+json for whatever goes wrong.

The body is counted while it is read, so a body without a length, or with a false one, costs no more than the cap.
"""

import asyncio
import logging
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pigeonhole.prediction_log import new_id
from pigeonhole.serving.door import Door
from pigeonhole.serving.journal import Request, current, requests, traceparent_of
from pigeonhole.serving.problem import MEDIA_TYPE, OVERLOADED_CODE, Problem
from pigeonhole.serving.telemetry import Telemetry
from pigeonhole.serving.tracing import Tracing, span_of_request

MAX_BODY_BYTES = 1 << 20
MAX_HEADERS = 100
MAX_HEADER_BYTES = 16 << 10
MAX_URL_BYTES = 8 << 10
MAX_TIMEOUT_MS = 999_999_999
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # any other word is a client's own
# Of a header that stands twice, a proxy in front may have read the other one.
SINGLE_HEADERS = (b"content-type", b"content-encoding", b"idempotency-key", b"x-canary-key", b"x-request-timeout-ms")

GONE = 499  # nobody is left to answer; nginx's number for it
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")

if TYPE_CHECKING:
    from opentelemetry.trace import Span

ABSOLUTE = re.compile("https?://[^/]*", re.IGNORECASE)

OUR_MISTAKE = Problem(500, "internal_error", "this is our mistake; the request id leads to it in the log")

logger = logging.getLogger(__name__)


class Exchange(msgspec.Struct):
    """One request and what became of it."""

    method: str
    request_id: str
    began: float  # time.perf_counter()
    span: "Span | None"
    status: int = 0
    code: str = ""  # of the problem that was the answer
    route: str = "other"  # never the path itself: a client could invent a million


class Accounts:
    """What is written down of every exchange, whichever way it takes: metrics, a span, a line of the journal."""

    def __init__(self, telemetry: Telemetry, tracing: Tracing | None = None) -> None:
        self._telemetry = telemetry
        self._tracing = tracing

    def begin(self, method: str, headers: Sequence[tuple[bytes, bytes]]) -> Exchange:
        """In the task that answers: what it logs from now on carries the request's ids."""
        method = method if method in METHODS else "other"
        parent = traceparent_of(headers)
        span = self._tracing.request(method, parent) if self._tracing else None
        exchange = Exchange(method, _request_id(headers), time.perf_counter(), span)
        trace_id = f"{span.get_span_context().trace_id:032x}" if span else parent.trace_id if parent else ""
        current.set(Request(exchange.request_id, trace_id))
        span_of_request.set(span)
        self._telemetry.in_flight.inc()
        return exchange

    def end(self, exchange: Exchange) -> None:
        self._telemetry.in_flight.dec()
        seconds, overloaded = time.perf_counter() - exchange.began, exchange.code == OVERLOADED_CODE
        self._telemetry.request(exchange.method, exchange.route, exchange.status, seconds, overloaded)
        if self._tracing and exchange.span:
            self._tracing.end_request(exchange.span, exchange.method, exchange.route, exchange.status)
        if requests.isEnabledFor(logging.INFO):
            ms = round(seconds * 1000, 3)
            fields = {"method": exchange.method, "route": exchange.route, "status": exchange.status, "ms": ms}
            requests.info("%s %s %d", exchange.method, exchange.route, exchange.status, extra={"fields": fields})


class Edge:
    """ASGI middleware. Leaves `request_id` and `began` (time.perf_counter) in the scope's state."""

    def __init__(self, app: ASGIApp, accounts: Accounts) -> None:
        self._app = app
        self._accounts = accounts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if target := ABSOLUTE.match(scope["path"]):  # RFC 9112 3.2.2
            scope = {**scope, "path": scope["path"][target.end() :] or "/"}
        if scope["method"] == "HEAD":  # RFC 9110 9.3.2: as GET; the server leaves the body out
            scope = {**scope, "method": "GET"}
        exchange = self._accounts.begin(scope["method"], scope["headers"])
        scope.setdefault("state", {}).update(request_id=exchange.request_id, began=exchange.began)
        try:
            await self._answer(_Way(scope, receive, send, exchange))
        finally:
            exchange.route = getattr(scope.get("route"), "name", "other")
            self._accounts.end(exchange)

    async def _answer(self, way: "_Way") -> None:
        exchange = way.exchange
        try:
            check_head(way.scope)
            await self._app(way.scope, way.receive, way.send)
        except Problem as problem:
            await way.refuse(problem)
        except (ClientDisconnect, asyncio.CancelledError):
            exchange.status = GONE
        except Exception:
            logger.exception("request %s failed", exchange.request_id)
            await way.refuse(OUR_MISTAKE)


class _Way:
    """An exchange on its way through ASGI."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, exchange: Exchange) -> None:
        self.scope = scope
        self.exchange = exchange
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
            self.exchange.status = message["status"]
            door: Door | None = self.scope["state"].get("door")
            close = [(b"connection", b"close")] if door is not None and door.is_ending else []
            message["headers"] = [*message["headers"], *headers_of_all(self.exchange.request_id), *close]
        await self._send(message)

    async def refuse(self, problem: Problem) -> None:
        if self.exchange.status:
            return  # half an answer is on its way already; the server closes the connection
        self.exchange.code = problem.code
        body = problem.body(self.exchange.request_id)
        await self.send({"type": "http.response.start", "status": problem.status, "headers": headers_of_problem(problem, body)})
        await self.send({"type": "http.response.body", "body": body})


def headers_of_all(request_id: str) -> list[tuple[bytes, bytes]]:
    """What every answer carries."""
    return [(b"x-request-id", request_id.encode()), (b"x-content-type-options", b"nosniff")]


def headers_of_problem(problem: Problem, body: bytes) -> list[tuple[bytes, bytes]]:
    headers = {"content-type": MEDIA_TYPE, "content-length": str(len(body)), **problem.headers}
    return [(name.encode(), value.encode()) for name, value in headers.items()]


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
        raise url_too_long()
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise headers_too_large()
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
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) == 0:
        raise Problem(400, "invalid_header", f"x-request-timeout-ms is a whole number of milliseconds from 1 to {MAX_TIMEOUT_MS}")
    return int(value) / 1000


def idempotency_key(headers: Mapping[str, str]) -> str | None:
    """Raises Problem for one that is none."""
    value = headers.get("idempotency-key")
    if value is not None and not re.fullmatch("[!-~]{1,255}", value):
        raise Problem(400, "invalid_header", "idempotency-key has 1 to 255 visible ASCII characters")
    return value


def url_too_long() -> Problem:
    return Problem(414, "url_too_long", f"a URL has at most {MAX_URL_BYTES} bytes", {"connection": "close"})


def headers_too_large() -> Problem:
    limit = f"at most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them"
    return Problem(431, "headers_too_large", limit, {"connection": "close"})


def _too_large() -> Problem:
    return Problem(413, "body_too_large", f"a body has at most {MAX_BODY_BYTES} bytes")


def _request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The caller's, if it is harmless in a header and in a log line; else a new one."""
    given = _values(headers, b"x-request-id")
    return given[0].decode() if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else new_id()


def _values(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for found, value in headers if found == name]
