"""A client of the service: typed answers, one deadline for all attempts, retries that never count a question twice.

    with Client("http://127.0.0.1:8080") as client:
        print(client.predict("Where is my parcel?").label)

An attempt that found no answer (no connection, 429, 502, 503, 504) is made again after a random pause that doubles, or when
Retry-After says, while the deadline lasts. All attempts of a call carry one Idempotency-Key, so that the log has one record
however often it was asked. Needs nothing but the standard library and msgspec; safe to share between threads.
"""

import contextlib
import functools
import http.client
import io
import random
import re
import socket
import ssl
import time
import urllib.parse
import uuid
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec

from pigeonhole.errors import NOT_AS_TYPED, ConfigError, ServiceError

MAX_TEXTS = 256  # of one request
AGAIN = (429, 502, 503, 504)
REDIRECTS = (301, 302, 303, 307, 308)  # the key and the texts would go where nobody said that they may
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
LONGEST_TIMEOUT_S = 999_999.0  # what X-Request-Timeout-Ms can say

Reply = TypeVar("Reply")


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one text; probabilities begin with the likeliest label, which is `label`.

    `labels`: those that a multi-label model gives the text, any number of them; None for any other model.
    """

    label: str
    labels: list[str] | None = None
    score: float
    probabilities: dict[str, float]
    prediction_id: str
    decision: Literal["accept", "review", "out_of_scope"]
    truncated: bool
    n_tokens: int
    model: str = ""
    model_version: str = ""
    request_id: str = ""


class TextError(msgspec.Struct, frozen=True):
    """What is wrong with one text of many."""

    index: int
    code: str
    detail: str


class Predictions(msgspec.Struct, frozen=True, kw_only=True):
    """The answers to many texts, in their order; None in the place of one that `errors` tells of."""

    predictions: list[Prediction | None]
    errors: list[TextError]
    model: str
    model_version: str
    request_id: str


class WordWeight(msgspec.Struct, frozen=True):
    word: str
    start: int
    end: int
    weight: float


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    label: str
    score: float
    words: list[WordWeight]
    words_left: int
    model: str
    model_version: str
    request_id: str


class _Feedback(msgspec.Struct, frozen=True):
    feedback_id: str


class _Problem(msgspec.Struct, frozen=True):
    code: Annotated[str, msgspec.Meta(max_length=100)] = "unknown"
    detail: str = ""
    request_id: str = ""


class _NoAnswer(Exception):  # noqa: N818  not an error yet: the next attempt may have one
    def __init__(self, why: str, status: int | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(why)
        self.status = status
        self.retry_after_s = retry_after_s


class _Within(io.RawIOBase):
    """What comes from a socket until a moment (time.monotonic()); a socket's own timeout begins anew with each byte."""

    def __init__(self, until: float, sock: socket.socket) -> None:
        self._until = until
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(left_s)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """Which has to be here by `until`, its head and its body."""

    def __init__(self, until: float, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        super().__init__(sock, *arguments, **named)
        self.fp.close()
        self.fp = io.BufferedReader(_Within(until, sock))


class Client:
    """Of the service at `url`. Every call raises ServiceError when it was refused, or had no answer within `timeout_s`."""

    def __init__(self, url: str, key: str | None = None, *, timeout_s: float = 10.0, canary_key: str | None = None) -> None:
        """`key`: an API key or an ID token. `canary_key`: who asks, where a candidate answers some. Raises ConfigError."""
        scheme, self._address, self._path = _parts(url)
        if not 0 < timeout_s <= LONGEST_TIMEOUT_S:
            raise ConfigError(f"timeout_s={timeout_s}: allowed are seconds above 0 to {LONGEST_TIMEOUT_S:g}")
        for name, value in (("key", key), ("canary_key", canary_key)):
            if value is not None and not re.fullmatch(r"[ -~\xa0-\xff]*", value):
                raise ConfigError(f"{name} has a character that no header can carry; allowed is one line of Latin-1")
        self.timeout_s = timeout_s
        self._tls = ssl.create_default_context() if scheme == "https" else None
        given = {"authorization": f"Bearer {key}" if key else None, "x-canary-key": canary_key}
        self._headers = {name: value for name, value in given.items() if value is not None}
        self._idle: list[http.client.HTTPConnection] = []  # as many as were ever needed at once

    def predict(self, text: str, *, top_k: int | None = None) -> Prediction:
        return self._post("/predict", {"text": text, **_unless_none(top_k=top_k)}, Prediction)

    def predict_many(self, texts: Sequence[str], *, top_k: int | None = None, partial: bool = False) -> Predictions:
        """Of up to 256 texts. `partial`: a text that cannot be read does not cost the others their answers."""
        if isinstance(texts, str):
            raise ConfigError("texts is a list of texts; a single one is for predict")
        if len(texts) > MAX_TEXTS:
            raise ConfigError(f"{len(texts)} texts: at most {MAX_TEXTS} go into one request; send several")
        body = {"texts": list(texts), "partial": partial, **_unless_none(top_k=top_k)}
        return self._post("/predict", body, Predictions)

    def explain(self, text: str, *, label: str | None = None) -> Explanation:
        return self._post("/explain", {"text": text, **_unless_none(label=label)}, Explanation)

    def feedback(self, prediction_id: str, label: str | Sequence[str], source: str) -> str:
        """The feedback's id; it is in the log. `label`: what was right; of a multi-label model a list, which may be empty."""
        said: dict[str, Any] = {"label": label} if isinstance(label, str) else {"labels": list(label)}
        body = {"prediction_id": prediction_id, **said, "source": source}
        return self._post("/feedback", body, _Feedback).feedback_id

    def model(self) -> dict[str, Any]:
        """What answers, and the limits of a question."""
        return self._until_answered(lambda left_s: self._attempt("GET", "/model", b"", {}, left_s), dict[str, Any])

    def close(self) -> None:
        """Of all connections that no call is using; a call after it opens a new one."""
        with contextlib.suppress(IndexError):  # another thread may take the last one
            while True:
                self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: dict[str, Any], shape: type[Reply]) -> Reply:
        headers = {"content-type": "application/json", "idempotency-key": str(uuid.uuid4())}
        try:
            data = msgspec.json.encode(body)
        except UnicodeEncodeError as error:
            raise ConfigError("there is half a surrogate pair in it, which is no character") from error

        def attempt(left_s: float) -> bytes:
            timeout = {"x-request-timeout-ms": str(max(1, int(left_s * 1000)))}
            return self._attempt("POST", path, data, headers | timeout, left_s)

        return self._until_answered(attempt, shape)

    def _until_answered(self, attempt: Callable[[float], bytes], shape: type[Reply]) -> Reply:
        until = time.monotonic() + self.timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return msgspec.json.decode(attempt(until - time.monotonic()), type=shape)
            except NOT_AS_TYPED as error:
                raise ServiceError(f"the answer is not what this client knows: {error}", None, "unknown") from error
            except _NoAnswer as none:
                wait_s = max(none.retry_after_s, random.uniform(0, pause_s))  # full jitter: callers that fail together part
                if time.monotonic() + wait_s >= until:
                    message = f"no answer within {self.timeout_s:g} s: {none}"
                    raise ServiceError(message, none.status, "no_answer") from none
                time.sleep(wait_s)
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)

    def _attempt(self, method: str, path: str, body: bytes, headers: dict[str, str], left_s: float) -> bytes:
        connection = self._connection(left_s)
        connection.response_class = functools.partial(_Answer, time.monotonic() + left_s)  # type: ignore[assignment]  # it is called, no more
        try:
            connection.request(method, self._path + path, body or None, self._headers | headers)
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.close()  # a server that was started again has closed the others too
            raise _NoAnswer(f"{type(error).__name__}: {error}") from error
        self._idle.append(connection)
        if answer.status in AGAIN:
            raise _NoAnswer(_problem(data).code, answer.status, _retry_after(answer.headers.get("retry-after", "")))
        if answer.status in REDIRECTS:
            place = answer.headers.get("location", "nowhere")[:300]
            message = (
                f"redirected with {answer.status} to {place}: give the Client the URL of the service itself, none is followed"
            )
            raise ServiceError(message, answer.status, "redirected")
        if answer.status != 200:
            problem = _problem(data)
            message = f"refused with {answer.status} {problem.code}: {problem.detail} (request {problem.request_id})"
            raise ServiceError(message, answer.status, problem.code)
        return data

    def _connection(self, left_s: float) -> http.client.HTTPConnection:
        try:
            connection = self._idle.pop()
        except IndexError:
            host, port = self._address
            if self._tls is not None:
                connection = http.client.HTTPSConnection(host, port, context=self._tls)
            else:
                connection = http.client.HTTPConnection(host, port)
        timeout_s = max(0.001, left_s)
        connection.timeout = timeout_s
        if connection.sock is not None:
            connection.sock.settimeout(timeout_s)
        return connection


def _parts(url: str) -> tuple[str, tuple[str, int | None], str]:
    """Scheme, host and port, path. Raises ConfigError."""
    try:
        found = urllib.parse.urlsplit(url)
        address = found.hostname or "", found.port
    except ValueError as error:
        raise ConfigError(f"url={url!r}: this is no URL ({error})") from error
    if found.scheme not in ("http", "https") or not address[0]:
        raise ConfigError(f"url={url!r}: a service's URL begins with http:// or https:// and names a host")
    if re.search(r"[\s\0-\x1f\x7f]", url) or not found.path.isascii():
        raise ConfigError(f"url={url!r}: a URL has no spaces or control characters, and a path of ASCII characters")
    if found.query or found.fragment or found.username is not None:
        raise ConfigError("url has a user, a query or a fragment, which would not be sent; allowed is http://host:port/path")
    try:
        address[0].encode("idna")  # as the socket does
    except UnicodeError as error:
        raise ConfigError(f"url={url!r}: no host has such a name ({error})") from error
    return found.scheme, address, found.path.rstrip("/")


def _unless_none(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _problem(data: bytes) -> _Problem:
    """Of a proxy's page too, which is no problem+json."""
    try:
        return msgspec.json.decode(data, type=_Problem)
    except NOT_AS_TYPED:
        return _Problem()


def _retry_after(value: str) -> float:
    return float(value) if value.isascii() and value.isdigit() else 0.0
