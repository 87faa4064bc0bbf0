"""Token ids in batches: sorted by length within megabatches, so that little is padded and little is lost of the shuffling."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEGABATCH = 16  # batches that are shuffled together before they are sorted by length


@dataclass(frozen=True)
class Batch:
    """input_ids, attention_mask: (b, t) int64; label_ids: (b,) int64; rows: (b,), their places in the split."""

    input_ids: Tensor
    attention_mask: Tensor
    label_ids: Tensor
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class TokenizedRows:
    """A split, tokenized once: ids of every text and its label id."""

    input_ids: Sequence[Sequence[int]]
    label_ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        input_ids, attention_mask = pad([self.input_ids[row] for row in rows])
        return Batch(input_ids, attention_mask, torch.from_numpy(self.label_ids[rows]), rows)


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
