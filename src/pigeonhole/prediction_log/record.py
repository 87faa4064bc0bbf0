"""One record and its line: `{…,"crc32":"0123abcd"}` and a newline, where the checksum covers every byte before `,"crc32"`.

A line is split from its neighbours by the newline byte alone; nothing that a user can write is ever a newline byte in JSON.
"""

import hashlib
import hmac
import os
import time
import uuid
import zlib
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec

from pigeonhole.errors import NOT_AS_TYPED, ConfigError
from pigeonhole.personal_data import redacted

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCHEMA_VERSION = 1
DECIMALS = 6  # of a probability

Kind = Literal["predictions", "feedback"]
TextPolicy = Literal["full", "redact", "hash", "none"]
Decision = Literal["accept", "review", "out_of_scope"]
LAST_MOMENT = timedelta(hours=1) - timedelta(microseconds=1)
DRAWN_AT_ONCE = 256
_drawn: deque[int] = deque()
if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_drawn.clear)  # a child would hand out its parent's bits again
NEVER = datetime.min.replace(tzinfo=UTC)
Moment = Annotated[datetime, msgspec.Meta(tz=True)]


class Features(msgspec.Struct, frozen=True, kw_only=True):
    """What drift compares when the text itself is not kept."""

    n_chars: int
    n_words: int
    n_tokens: int
    unknown_tokens: int
    truncated: bool
    max_logit: float
    sketch: list[float] | None = None  # of the embedding (sketch.py); records of earlier releases have none


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One prediction. Readers skip fields that they do not know; a field with another meaning takes a new schema_version."""

    schema_version: int = SCHEMA_VERSION
    prediction_id: str
    at: Moment
    request_id: str
    model: str
    version: str
    text: str | None
    text_policy: TextPolicy
    features: Features
    label: str  # the likeliest
    labels: list[str] | msgspec.UnsetType = msgspec.UNSET  # those given, of a multi-label model
    score: float
    probabilities: dict[str, float]  # to six decimals (`kept_probabilities`); `score` is as it was answered
    decision: Decision
    latency_ms: float

    @property
    def given(self) -> frozenset[str]:
        """The answer: one label, or of a multi-label model any number of them."""
        return frozenset((self.label,) if self.labels is msgspec.UNSET else self.labels)


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody found to be the true label of a prediction, or, of a multi-label model, its true labels."""

    schema_version: int = SCHEMA_VERSION
    feedback_id: str
    at: Moment
    prediction_id: str
    label: str  # empty where `labels` is there
    source: str
    labels: list[str] | msgspec.UnsetType = msgspec.UNSET

    @property
    def given(self) -> frozenset[str]:
        """What was said to be right: one label, or any number of them."""
        return frozenset((self.label,) if self.labels is msgspec.UNSET else self.labels)


class Head(msgspec.Struct, frozen=True):
    """What the line of every kind and every version has."""

    schema_version: int
    at: Moment


def kept_probabilities(found: "NDArray[np.float64]") -> list[Any]:
    """(c,) or (n, c) -> the same as a list, to six decimals: with all of their digits they were half of the log's bytes."""
    kept: list[Any] = found.round(DECIMALS).tolist()
    return kept


def random_bits() -> int:
    """128 of them, from the system, which is asked for many at a time: asking takes longer than all else about an id."""
    try:
        return _drawn.pop()
    except IndexError:
        fresh = os.urandom(16 * DRAWN_AT_ONCE)
        bits, *more = (int.from_bytes(fresh[start : start + 16]) for start in range(0, len(fresh), 16))
        _drawn.extend(more)
        return bits


def new_id() -> str:
    """A UUIDv7 (RFC 9562): Unix milliseconds, then 74 random bits. Ids sort by time; an id leads to the hour of its record."""
    ms, bits = time.time_ns() // 1_000_000, random_bits()
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7{bits >> 116:03x}-{0x8000 | bits >> 100 & 0x3FFF:04x}-{bits & (1 << 48) - 1:012x}"


def moment_of(prediction_id: str) -> datetime | None:
    """When an id of `new_id` was made; None for any other string."""
    try:
        value = uuid.UUID(prediction_id)
        return datetime.fromtimestamp((value.int >> 80) / 1000, UTC) if value.version == 7 else None
    except (ValueError, OverflowError, OSError):
        return None


def kept_text(text: str, policy: TextPolicy, key: bytes = b"") -> str | None:
    """The text as the log keeps it. A keyed hash still shows which texts are equal, to those alone who hold the key."""
    if policy == "full":
        return text
    if policy == "none":
        return None
    if policy == "redact":
        return redacted(text)
    if not key:
        raise ConfigError("text policy hash needs a key: without one, the hash of a short text can be guessed back")
    return "hmac-sha256:" + hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def is_sampled(prediction_id: str, share: float) -> bool:
    """Whether an evenly drawn share of all predictions holds this one; a smaller share is a part of a larger one."""
    return share == 1 or int.from_bytes(hashlib.sha256(prediction_id.encode()).digest()[:8]) < share * 2**64


def encode_line(record: Record | Feedback) -> bytes:
    if record.at.tzinfo is None:
        raise ValueError(f"at={record.at} has no time zone")
    body = msgspec.json.encode(record)[:-1]
    return b'%b,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def is_intact(line: bytes) -> bool:
    """Whether the checksum of a line, given without its newline, is there and fits."""
    body, suffix = line[:-20], line[-20:]
    return suffix == b',"crc32":"%08x"}' % zlib.crc32(body)


def read_head(line: bytes) -> Head | None:
    """Of a line given without its newline; None where it is damaged."""
    if not is_intact(line):
        return None
    try:
        return msgspec.json.decode(line, type=Head)
    except NOT_AS_TYPED:
        return None


def partition_of(at: datetime) -> str:
    at = at.astimezone(UTC)
    return f"date={at.date().isoformat()}/hour={at.hour:02d}"


def span_of(partition: str) -> tuple[datetime, datetime]:
    """The first and the last moment of an hour; of a name that is no hour's, a span that no record is in."""
    try:
        first = datetime.strptime(partition, "date=%Y-%m-%d/hour=%H").replace(tzinfo=UTC)
    except ValueError:
        return NEVER, NEVER
    return (first, first + LAST_MOMENT) if partition_of(first) == partition else (NEVER, NEVER)
