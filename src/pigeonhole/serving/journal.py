"""The journal: what the service says on stderr while it runs, as lines for people or as one JSON object a line for machines.

A line that is written while a request is answered carries the request's id and trace id (W3C trace context). No line holds a text
that somebody sent.
"""

import contextlib
import datetime
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from pigeonhole.errors import PigeonholeError
from pigeonhole.prediction_log import random_bits

Form = Literal["text", "json"]

logger = logging.getLogger(__name__)
requests = logging.getLogger("pigeonhole.requests")
"""One line a request, where the form is json."""


class Traceparent(msgspec.Struct, frozen=True):
    """Where a request stands in its caller's trace."""

    trace_id: str  # 32 hexadecimal digits
    span_id: str  # 16, of the caller's span
    flags: int


class Request(msgspec.Struct):
    """What ties a line to a request."""

    request_id: str
    trace_id: str = ""  # until a line needs one that nobody gave


current: ContextVar[Request | None] = ContextVar("current", default=None)


def begin(form: Form) -> None:
    """Send warnings, our own notes and, as JSON, a line a request to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("pigeonhole").setLevel(logging.INFO)
    requests.setLevel(logging.INFO if form == "json" else logging.WARNING)


@contextlib.contextmanager
def to_the_end(form: Form) -> Iterator[None]:
    """Why the service ends is a JSON line too, where the form is json; as text it is the command's to tell."""
    try:
        yield
    except PigeonholeError as error:
        if form == "text":
            raise
        logger.error("%s", error, exc_info=bool(os.environ.get("PIGEONHOLE_TRACEBACK")))
        sys.exit(error.exit_code)


def traceparent_of(headers: Sequence[tuple[bytes, bytes]]) -> Traceparent | None:
    """The caller's, if it is one as https://www.w3.org/TR/trace-context/ has it; a broken one is as good as none."""
    given = [value for name, value in headers if name == b"traceparent"]
    found = (
        re.fullmatch(rb"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", given[0])
        if len(given) == 1
        else None
    )
    if found is None or not int(found[1], 16) or not int(found[2], 16) or (given[0].startswith(b"00") and found[4]):
        return None
    return Traceparent(found[1].decode(), found[2].decode(), int(found[3], 16))


def new_trace_id() -> str:
    return f"{random_bits():032x}"


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        if record.levelno == logging.INFO:
            return record.getMessage()
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name is logging's
        return f"{record.levelname} {record.name}: {record.message}"


class _Json(logging.Formatter):
    """`severity`, `message` and `time` are what Cloud Logging reads."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        request = current.get()
        if request is not None:
            request.trace_id = request.trace_id or new_trace_id()
            line |= {"request_id": request.request_id, "trace_id": request.trace_id}
        fields: Mapping[str, Any] = getattr(record, "fields", {})
        line |= fields
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return msgspec.json.encode(line).decode()
        except UnicodeEncodeError:  # a path, or a variable's name, that is no UTF-8
            return json.dumps(msgspec.to_builtins(line))
