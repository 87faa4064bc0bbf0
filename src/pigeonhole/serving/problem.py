"""Refusals as RFC 9457 problem details: they name the field and the limit, never a stack and never the input."""

import msgspec

from pigeonhole.errors import status_title

MEDIA_TYPE = "application/problem+json"
OVERLOADED_CODE = "overloaded"  # of a 503: too many texts are waiting
LATE_CODE = "deadline_passed"


class TextError(msgspec.Struct, frozen=True):
    """What is wrong with one text of many; `index` counts from 0."""

    index: int
    code: str
    detail: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every answer that is not a success. `code` is what programs compare; it keeps its meaning."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    request_id: str = ""
    errors: tuple[TextError, ...] = ()


class Problem(Exception):  # noqa: N818  the word of RFC 9457
    """Raised anywhere below the edge, answered by the edge."""

    def __init__(
        self,
        status: int,
        code: str,
        detail: str = "",
        headers: dict[str, str] | None = None,
        errors: tuple[TextError, ...] = (),
    ) -> None:
        super().__init__(code)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
        self.errors = errors

    def body(self, request_id: str = "") -> bytes:
        kind = f"urn:pigeonhole:problem:{self.code}"
        title = status_title(self.status)
        return msgspec.json.encode(ProblemDetails(kind, title, self.status, self.code, self.detail, request_id, self.errors))


def later(code: str, detail: str) -> Problem:
    return Problem(503, code, detail, {"retry-after": "1"})


def too_late() -> Problem:
    return later(LATE_CODE, "there was no answer within the deadline")
