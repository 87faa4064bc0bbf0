"""The log over time, for the page: in each step of a span how many texts, how sure and how fast, which labels, how often right.

One pass over the predictions; of each a few numbers are kept, never a text. How often they were right is estimated as in
`retrain`: answers to the review queue are weighed, and words with a label that the version does not have are left out.
"""

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.feedback import latest_words
from pigeonhole.drift.review import Judged, estimate, probability_asked
from pigeonhole.drift.settings import AUDIT_SHARE
from pigeonhole.prediction_log import read_window

MOST_LABELS = 8
PERCENTILES = (50, 95, 99)


@dataclass
class Step:
    """What came in one step of the span."""

    labels: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    latencies_ms: "array[float]" = field(default_factory=lambda: array("d"))
    judged: list[Judged] = field(default_factory=list)


def traffic(
    log: str, start: datetime, end: datetime, until: datetime, steps: int, audit_share: float = AUDIT_SHARE
) -> dict[str, Any]:
    """`until`: feedback that came by then is counted with the step of its prediction. Raises StorageError."""
    said = latest_words(log, start, until)
    unknown_labels = 0
    found = [Step() for _ in range(steps)]
    width = (end - start) / steps
    window = read_window(log, start, end, read_compacted=compacted_lines)
    for record in window:
        step = found[min(steps - 1, int((record.at - start) / width))]
        step.labels.update(record.given)
        step.decisions[record.decision] += 1
        step.versions[record.version] += 1
        step.scores.append(record.score)
        step.latencies_ms.append(record.latency_ms)
        if (word := said.get(record.prediction_id)) is None:
            continue
        if not word.given <= record.probabilities.keys():
            unknown_labels += 1
        elif (asked := probability_asked(record, word, audit_share)) is not None:
            step.judged.append(Judged(record.given, word.given, asked))
    totals = sum((step.labels for step in found), Counter[str]())
    shown = [label for label, _ in totals.most_common(MOST_LABELS)]
    return {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "texts": sum(len(step.scores) for step in found),
        "labels": shown,
        "steps": [{"at": (start + number * width).isoformat(), **_told(step, shown)} for number, step in enumerate(found)],
        "unknown_labels": unknown_labels,
        "counts": asdict(window.counts),
    }


def _told(step: Step, shown: list[str]) -> dict[str, Any]:
    n = len(step.scores)
    named = {label: step.labels[label] for label in shown}
    found = estimate(step.judged)
    slow = np.percentile(step.latencies_ms, PERCENTILES).tolist() if n else []
    return {
        "texts": n,
        "labels": named,
        "other_labels": sum(step.labels.values()) - sum(named.values()),
        "decisions": dict(step.decisions),
        "versions": dict(step.versions),
        "mean_score": float(np.mean(step.scores)) if n else None,
        "latency_ms": {f"p{percent}": value for percent, value in zip(PERCENTILES, slow, strict=False)},
        "judged": found["n"],
        "accuracy": found["accuracy"],
        "interval": found["interval"],
    }
