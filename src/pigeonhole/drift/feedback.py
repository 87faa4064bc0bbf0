"""Feedback joined to predictions: how often the live version was right, with intervals, in all and by true label and source.

This is what sees concept drift. It is an estimate of the traffic only as far as the judged predictions are drawn from it evenly;
therefore each source (a random audit, a person's correction) stands by itself too.
"""

from collections import Counter
from dataclasses import asdict
from datetime import datetime
from typing import Any

from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.window import Reference
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, read_window


def live_accuracy(log: str, start: datetime, end: datetime, reference: Reference, until: datetime) -> dict[str, Any]:
    """Of predictions made between `start` and `end`, by what was said of them until `until` (feedback comes late).

    The latest word on a prediction counts; another one before it is a contradiction. Predictions of other versions, and labels
    that the version does not have, are counted and left out.
    """
    latest, contradicted, feedback_counts = _latest_words(log, start, until)
    judged: list[tuple[str, str, str]] = []  # predicted label, true label, source
    other_versions = unknown_labels = met = 0
    for record in read_window(log, start, end, read_compacted=compacted_lines):
        word = latest.get(record.prediction_id)
        if word is None:
            continue
        met += 1
        if (record.model, record.version) != (reference.model, reference.version):
            other_versions += 1
        elif word.label not in reference.labels:
            unknown_labels += 1
        else:
            judged.append((record.label, word.label, word.source))
    labels = sorted({true for _, true, _ in judged})
    sources = sorted({source for *_, source in judged})
    return {
        "version": reference.version,
        **_share(judged),
        "by_label": {label: _share([each for each in judged if each[1] == label]) for label in labels},
        "by_source": {source: _share([each for each in judged if each[2] == source]) for source in sources},
        "contradicted": contradicted,
        "unknown_predictions": len(latest) - met,  # not made in this span, or not in the log
        "other_versions": other_versions,
        "unknown_labels": unknown_labels,
        "feedback": feedback_counts,
    }


def _latest_words(log: str, start: datetime, until: datetime) -> tuple[dict[str, Feedback], int, dict[str, Any]]:
    latest: dict[str, Feedback] = {}
    said: dict[str, set[str]] = {}
    window = read_window(log, start, until, "feedback", compacted_lines)
    for word in window:
        said.setdefault(word.prediction_id, set()).add(word.label)
        known = latest.get(word.prediction_id)
        if known is None or (known.at, known.feedback_id) < (word.at, word.feedback_id):
            latest[word.prediction_id] = word
    contradicted = Counter(len(labels) > 1 for labels in said.values())[True]
    return latest, contradicted, asdict(window.counts)


def _share(judged: list[tuple[str, str, str]]) -> dict[str, Any]:
    """The accuracy and its 95 % interval (Wilson); no accuracy where nothing was judged."""
    right = sum(predicted == true for predicted, true, _ in judged)
    found = wilson_interval(right, len(judged))
    return {"n": len(judged), "accuracy": found.estimate if judged else None, "interval": [found.low, found.high]}
