"""The log over time, for the page: in each step of a span how many texts, how sure and how fast, which labels, how often right.

One pass over the predictions; of each a few numbers are kept, never a text.
"""

from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

import numpy as np

from pigeonhole.drift.compact import compacted_lines
from pigeonhole.metrics import wilson_interval
from pigeonhole.prediction_log import Feedback, read_window

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
    judged: int = 0
    right: int = 0


def traffic(log: str, start: datetime, end: datetime, until: datetime, steps: int) -> dict[str, Any]:
    """`until`: feedback that came by then is counted with the step of its prediction. Raises StorageError."""
    said = {word.prediction_id: word.given for word in _latest(log, start, until)}
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
        if record.prediction_id in said:
            step.judged += 1
            step.right += said[record.prediction_id] == record.given
    totals = sum((step.labels for step in found), Counter[str]())
    shown = [label for label, _ in totals.most_common(MOST_LABELS)]
    return {
        "start": start.isoformat(),
        "end": end.isoformat(),
        "texts": sum(len(step.scores) for step in found),
        "labels": shown,
        "steps": [{"at": (start + number * width).isoformat(), **_told(step, shown)} for number, step in enumerate(found)],
        "counts": asdict(window.counts),
    }


def _latest(log: str, start: datetime, until: datetime) -> list[Feedback]:
    """All words, the latest on a prediction last."""
    return sorted(read_window(log, start, until, "feedback", compacted_lines), key=lambda word: (word.at, word.feedback_id))


def _told(step: Step, shown: list[str]) -> dict[str, Any]:
    n = len(step.scores)
    named = {label: step.labels[label] for label in shown}
    share = wilson_interval(step.right, step.judged)
    slow = np.percentile(step.latencies_ms, PERCENTILES).tolist() if n else []
    return {
        "texts": n,
        "labels": named,
        "other_labels": sum(step.labels.values()) - sum(named.values()),
        "decisions": dict(step.decisions),
        "versions": dict(step.versions),
        "mean_score": float(np.mean(step.scores)) if n else None,
        "latency_ms": {f"p{percent}": value for percent, value in zip(PERCENTILES, slow, strict=False)},
        "judged": step.judged,
        "accuracy": share.estimate if step.judged else None,
        "interval": [share.low, share.high],
    }
