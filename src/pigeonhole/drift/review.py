"""The review queue: which predictions a person should look at, so drawn that what is found can be weighed back to all of them.

Each prediction is drawn with a probability of its own, from a small one for the surest to 1 for one that might as well have been
another label. The probability follows from the record and the draw from its id, so every process draws the same and nothing has
to be kept. An estimate weighs each judged prediction by 1 / probability (Horvitz and Thompson 1952; as a ratio, Hájek 1971).
"""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.drift.window import Reference
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, Record, is_sampled, read_window

SOURCE = "review"
"""Feedback that answers the queue says so; a person who corrects what struck them gives another source, and another estimate."""


def probability_drawn(record: Record, audit_share: float) -> float:
    """1 where the two likeliest answers are equal, `audit_share` where there is no doubt; steep between them."""
    return audit_share + (1 - audit_share) * (1 - _lead(record)) ** 4


def _lead(record: Record) -> float:
    """Of the answer before the next one; of several labels as if all other sets of labels were one answer."""
    if record.labels is not UNSET:
        return max(0.0, 2 * record.score - 1)
    first, second = heapq.nlargest(2, [*record.probabilities.values(), 0.0, 0.0])
    return first - second


def is_drawn(record: Record, audit_share: float) -> bool:
    """Independent of the log's own sample, which is drawn from the id too."""
    return is_sampled(f"{SOURCE} {record.prediction_id}", probability_drawn(record, audit_share))


def probability_asked(record: Record, word: Feedback, audit_share: float) -> float | None:
    """That somebody was asked what was said: 1 for what people say unasked, None for an answer to what the queue never showed."""
    if word.source != SOURCE:
        return 1.0
    return probability_drawn(record, audit_share) if is_drawn(record, audit_share) else None


@dataclass(frozen=True)
class Judged:
    """A drawn prediction and what was said of it."""

    predicted: frozenset[str]
    true: frozenset[str]
    probability: float


def estimate(judged: Sequence[Judged]) -> dict[str, Any]:
    """The share of right answers among all predictions, and its 95 % interval: Wilson's, for as many as the weights are worth.

    (Kish 1965: the square of the sum of the weights over the sum of their squares.)
    """
    weights = [1 / each.probability for each in judged]
    total = sum(weights)
    effective = total**2 / sum(weight**2 for weight in weights) if judged else 0.0
    right = sum(weight for weight, each in zip(weights, judged, strict=True) if each.predicted == each.true)
    share = right / total if judged else 0.0
    found = wilson_interval(share * effective, effective)
    return {
        "n": len(judged),
        "effective_n": round(effective, 1),
        "accuracy": share if judged else None,
        "interval": [found.low, found.high],
    }


def by_label(judged: Sequence[Judged]) -> dict[str, dict[str, Any]]:
    """For each label: how many that are so are called so, and how many that are called so are so."""
    labels = sorted(frozenset().union(*(each.true | each.predicted for each in judged)))
    return {label: _of_label(label, judged) for label in labels}


def _of_label(label: str, judged: Sequence[Judged]) -> dict[str, Any]:
    alone = frozenset((label,))
    found = [Judged(each.predicted & alone, each.true & alone, each.probability) for each in judged]
    return {
        "recall": estimate([each for each in found if each.true]),
        "precision": estimate([each for each in found if each.predicted]),
    }


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """A prediction to look at; `text` is what the log keeps of it."""

    prediction_id: str
    at: datetime
    text: str | None
    text_policy: str
    label: str
    labels: list[str] | UnsetType = UNSET
    score: float
    probabilities: dict[str, float]
    reason: str  # uncertain, or audit: one of the many that are drawn evenly
    source: str = SOURCE  # to be sent with the feedback


def queue(
    log: str, start: datetime, end: datetime, until: datetime, reference: Reference, n: int, audit_share: float = AUDIT_SHARE
) -> dict[str, Any]:
    """`n` of the drawn predictions that nobody has reviewed yet, in an order that is drawn too.

    Whoever stops half-way has then judged a fair part, and the estimate is as good as its answers are many.
    """
    reviewed = {
        word.prediction_id for word in read_window(log, start, until, "feedback", compacted_lines) if word.source == SOURCE
    }
    window = read_window(log, start, end, read_compacted=compacted_lines)
    drawn = [record for record in _of_version(window, reference) if is_drawn(record, audit_share)]
    waiting = [record for record in drawn if record.prediction_id not in reviewed]
    return {
        "version": reference.version,
        "audit_share": audit_share,
        "drawn": len(drawn),
        "waiting": len(waiting),
        "items": [_item(record, audit_share) for record in heapq.nsmallest(n, waiting, key=order_of)],
    }


def _of_version(records: Iterable[Record], reference: Reference) -> Iterable[Record]:
    return (record for record in records if (record.model, record.version) == (reference.model, reference.version))


def order_of(record: Record) -> str:
    """Random and the same for ever: the end of a version 7 id is drawn when it is made."""
    return record.prediction_id[::-1]


def _item(record: Record, audit_share: float) -> Item:
    return Item(
        prediction_id=record.prediction_id,
        at=record.at,
        text=record.text,
        text_policy=record.text_policy,
        label=record.label,
        labels=record.labels,
        score=record.score,
        probabilities=record.probabilities,
        reason="uncertain" if probability_drawn(record, audit_share) >= 0.5 else "audit",
    )
