"""Accuracy on parts of the rows that one would want to know about by themselves: for now, by the length of the text."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigeonhole.metrics import Ids, wilson_interval

LENGTHS = (5, 15, 40)  # words: a shout, a sentence, some sentences, a letter


def length_slices(texts: Sequence[str], true_ids: Ids, predicted_ids: Ids) -> dict[str, dict[str, Any]]:
    """`{"1-5 words": {"n", "accuracy", "interval"}, …}`; a slice without rows is left out."""
    right = true_ids == predicted_ids
    slices = {}
    for name, inside in length_masks(texts).items():
        n, hits = int(inside.sum()), int(right[inside].sum())
        interval = wilson_interval(hits, n)
        slices[name] = {"n": n, "accuracy": interval.estimate, "interval": [interval.low, interval.high]}
    return slices


def length_masks(texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """For each slice that has rows, which of the texts it holds, (n,)."""
    words = np.array([len(text.split()) for text in texts])
    masks = {
        name: (words > low) & (words <= high) if low else words <= high
        for name, low, high in zip(_names(), (0, *LENGTHS), (*LENGTHS, np.inf), strict=True)
    }
    return {name: inside for name, inside in masks.items() if inside.any()}


def _names() -> list[str]:
    starts = [1, *(length + 1 for length in LENGTHS)]
    return [f"{low}-{high} words" for low, high in zip(starts, LENGTHS, strict=False)] + [f"{starts[-1]} words and more"]
