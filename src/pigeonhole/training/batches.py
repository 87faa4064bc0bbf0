"""Token ids in batches: sorted by length within megabatches, so that little is padded and little is lost of the shuffling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pigeonhole.bundle import WindowRule

MEGABATCH = 16  # batches that are shuffled together before they are sorted by length


@dataclass(frozen=True)
class Batch:
    """input_ids, attention_mask: (w, t) int64, w windows of b texts; label_ids: (b,) int64; rows: (b,), places in the split.

    counts: how many windows each text has, (b,); one each where all texts are short.
    """

    input_ids: Tensor
    attention_mask: Tensor
    label_ids: Tensor
    rows: NDArray[np.int64]
    counts: list[int]


@dataclass(frozen=True)
class TokenizedRows:
    """A split, tokenized once: ids of every text and its label id; `more`: the further windows of long texts, by row."""

    input_ids: Sequence[Sequence[int]]
    label_ids: NDArray[np.int64]
    more: Mapping[int, Sequence[Sequence[int]]] = field(default_factory=dict)
    rule: WindowRule = "truncate"

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        windows = [[self.input_ids[row], *self.more.get(row, ())] for row in rows.tolist()]
        input_ids, attention_mask = pad([window for own in windows for window in own])
        return Batch(input_ids, attention_mask, torch.from_numpy(self.label_ids[rows]), rows, [len(own) for own in windows])

    def windows(self) -> list[Sequence[int]]:
        """Those of all texts, one text after the other."""
        return [window for row, ids in enumerate(self.input_ids) for window in (ids, *self.more.get(row, ()))]

    def counts(self) -> list[int]:
        """How many windows each text has."""
        return [1 + len(self.more.get(row, ())) for row in range(len(self))]

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text in all its windows, (n,)."""
        return np.array([len(ids) + sum(map(len, self.more.get(row, ()))) for row, ids in enumerate(self.input_ids)], np.int64)


def merge_windows(windows: Tensor, counts: Sequence[int], rule: WindowRule) -> Tensor:
    """(w, c) -> (b, c), as classifier.aggregate does it, and with a gradient."""
    if len(counts) == len(windows):
        return windows
    return torch.stack([own.amax(0) if rule == "max" else own.mean(0) for own in torch.split(windows, list(counts))])


def pad(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """-> input_ids, attention_mask, each (b, t) int64, padded to the longest row; what the padding's id is does not matter."""
    longest = max(map(len, rows))
    input_ids = np.zeros((len(rows), longest), np.int64)
    attention_mask = np.zeros((len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        input_ids[number, : len(row)] = row
        attention_mask[number, : len(row)] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(attention_mask)


def shuffled_batches(lengths: NDArray[np.int64], batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """Rows of each batch of an epoch, a function of its arguments alone."""
    random = np.random.default_rng([seed, epoch])
    order = random.permutation(len(lengths))
    batches = []
    for start in range(0, len(order), batch_size * MEGABATCH):
        mega = order[start : start + batch_size * MEGABATCH]
        mega = mega[np.argsort(lengths[mega], kind="stable")]
        batches += [mega[first : first + batch_size] for first in range(0, len(mega), batch_size)]
    return [batches[place] for place in random.permutation(len(batches))]


def sorted_batches(lengths: NDArray[np.int64], batch_size: int) -> list[NDArray[np.int64]]:
    """Rows by length, for evaluation."""
    order = np.argsort(lengths, kind="stable")
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
