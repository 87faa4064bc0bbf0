"""Accuracy on parts of the rows that one would want to know about by themselves: for now, by the length of the text."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pigeonhole.metrics import Ids, wilson_interval

LENGTHS = (5, 15, 40)  # words: a shout, a sentence, some sentences, a letter


def length_slices(texts: Sequence[str], true_ids: Ids, predicted_ids: Ids) -> dict[str, dict[str, Any]]:
    """`{"1-5 words": {"n", "accuracy", "interval"}, …}`; a slice without rows is left out."""
    words = np.array([len(text.split()) for text in texts])
    right = true_ids == predicted_ids
    slices = {}
    for name, low, high in zip(_names(), (0, *LENGTHS), (*LENGTHS, np.inf), strict=True):
        inside = (words > low) & (words <= high) if low else words <= high
        n, hits = int(inside.sum()), int(right[inside].sum())
        if n:
            interval = wilson_interval(hits, n)
            slices[name] = {"n": n, "accuracy": interval.estimate, "interval": [interval.low, interval.high]}
    return slices


def _names() -> list[str]:
    starts = [1, *(length + 1 for length in LENGTHS)]
    return [f"{low}-{high} words" for low, high in zip(starts, LENGTHS, strict=False)] + [f"{starts[-1]} words and more"]
