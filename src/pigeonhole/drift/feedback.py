"""Feedback joined to predictions: how often the live version was right, with intervals, in all and by true label and source.

This is what sees concept drift. What people correct of themselves is no estimate of the traffic, so each source stands by itself,
and what was said in answer to the review queue is weighed back to all predictions.
"""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.review import SOURCE, Judged, by_label, estimate, is_drawn, probability_drawn
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.drift.window import Reference
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, moment_of, read_window
from pigeonhole.prediction_log.record import NEVER

LATE = timedelta(days=1)

_Judged = tuple[frozenset[str], frozenset[str], str]  # labels given, true labels, source


def live_accuracy(
    log: str, start: datetime, end: datetime, reference: Reference, until: datetime, audit_share: float = AUDIT_SHARE
) -> dict[str, Any]:
    """Of predictions made between `start` and `end`, by what was said of them until `until` (feedback comes late).

    The latest word on a prediction counts; another one before it is a contradiction. Predictions of other versions, and labels
    that the version does not have, are counted and left out. `reviewed` is the estimate for all of the traffic, from what was
    said in answer to the review queue (review.py) alone.
    """
    said, feedback_counts = _words(log, start, until)
    known = frozenset(reference.labels)
    judged: list[_Judged] = []
    reviewed: list[Judged] = []
    other_versions = unknown_labels = met = late = contradicted = 0
    for record in read_window(log, start, end, read_compacted=compacted_lines):
        words = said.pop(record.prediction_id, [])
        if not words:
            continue
        met += 1
        late += words[-1].at - record.at > LATE
        contradicted += len({word.given for word in words}) > 1
        answers = [word for word in words if word.source == SOURCE]
        if (record.model, record.version) != (reference.model, reference.version):
            other_versions += 1
        elif not words[-1].given <= known:
            unknown_labels += 1
        else:
            judged.append((record.given, words[-1].given, words[-1].source))
            if answers and answers[-1].given <= known and is_drawn(record, audit_share):
                reviewed.append(Judged(record.given, answers[-1].given, probability_drawn(record, audit_share)))
    in_span = sum(start <= (moment_of(prediction_id) or NEVER) < end for prediction_id in said)
    labels = sorted(frozenset().union(*(true for _, true, _ in judged)))
    sources = sorted({source for *_, source in judged})
    return {
        "version": reference.version,
        **_share(judged),
        "by_label": {label: _share([each for each in judged if label in each[1]]) for label in labels},
        "by_source": {source: _share([each for each in judged if each[2] == source]) for source in sources},
        "reviewed": {**estimate(reviewed), "by_label": by_label(reviewed), "audit_share": audit_share},
        "contradicted": contradicted,
        "late": late,  # said more than a day after the prediction
        "unknown_predictions": in_span,  # made in this span by their ids, and not in the log
        "other_spans": len(said) - in_span,
        "other_versions": other_versions,
        "unknown_labels": unknown_labels,
        "feedback": feedback_counts,
    }


def latest_words(log: str, start: datetime, until: datetime) -> dict[str, Feedback]:
    """The last that was said of each prediction, by its id."""
    latest: dict[str, Feedback] = {}
    for word in read_window(log, start, until, "feedback", compacted_lines):
        known = latest.get(word.prediction_id)
        if known is None or said_at(known) < said_at(word):
            latest[word.prediction_id] = word
    return latest


def said_at(word: Feedback) -> tuple[datetime, str]:
    """Words are ordered by their time; those of one moment the same way each time."""
    return word.at, word.feedback_id


def _words(log: str, start: datetime, until: datetime) -> tuple[dict[str, list[Feedback]], dict[str, Any]]:
    """All that was said of each prediction, in its order. The same said twice, on two replicas too, is one word."""
    said: dict[str, list[Feedback]] = {}
    window = read_window(log, start, until, "feedback", compacted_lines)
    for word in window:
        said.setdefault(word.prediction_id, []).append(word)
    for words in said.values():
        words.sort(key=said_at)
    return said, asdict(window.counts)


def _share(judged: list[_Judged]) -> dict[str, Any]:
    """The accuracy and its 95 % interval (Wilson); no accuracy where nothing was judged."""
    right = sum(predicted == true for predicted, true, _ in judged)
    found = wilson_interval(right, len(judged))
    return {"n": len(judged), "accuracy": found.estimate if judged else None, "interval": [found.low, found.high]}
