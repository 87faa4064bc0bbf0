"""Token ids in batches without padding: sorted by length within megabatches, so that the attention's view is almost full too.

Promises: the batches of an epoch are a function of lengths, size, seed and epoch alone; no Python runs for each text of a batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pigeonhole.bundle import WindowRule

MEGABATCH = 16  # batches that are shuffled together before they are sorted by length


@dataclass(frozen=True)
class Packed:
    """Windows one after the other, as training/packed.py says.

    input_ids: (n,) int64, the tokens of all w windows; view: (w, t) int64, which token stands at which place of its window, -1
    where there is none; place: (n,) int64, where each token stands in the flattened view; runs: how many windows
    follow each other with how many tokens each.
    """

    input_ids: Tensor
    view: Tensor
    place: Tensor
    runs: list[tuple[int, int]]

    def to(self, device: torch.device) -> "Packed":
        input_ids, view, place = (value.to(device, non_blocking=True) for value in (self.input_ids, self.view, self.place))
        return Packed(input_ids, view, place, self.runs)

    def pin(self) -> "Packed":
        return Packed(self.input_ids.pin_memory(), self.view.pin_memory(), self.place.pin_memory(), self.runs)


@dataclass(frozen=True)
class Batch:
    """w windows of b texts; label_ids: (b, …) as the split has them; counts: how many windows each text has, (b,)."""

    packed: Packed
    label_ids: Tensor
    counts: list[int]

    def __len__(self) -> int:
        return len(self.counts)

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.packed.to(device), self.label_ids.to(device, non_blocking=True), self.counts)

    def pin(self) -> "Batch":
        return Batch(self.packed.pin(), self.label_ids.pin_memory(), self.counts)


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
        counts = self._counts[rows]
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        packed = self.pack(np.repeat(self._first_windows[rows], counts) + within)
        return Batch(packed, torch.from_numpy(self.label_ids[rows]), counts.tolist())

    def pack(self, windows: NDArray[np.int64]) -> Packed:
        """Of the windows with these numbers, counted over all texts, one text after the other."""
        lengths = self.window_lengths[windows]
        width = int(lengths.max())
        position = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        place = np.repeat(np.arange(len(windows)) * width, lengths) + position
        view = np.full(len(windows) * width, -1, np.int64)
        view[place] = np.arange(len(place))
        input_ids = self._tokens[np.repeat(self._starts[windows], lengths) + position]
        arrays = torch.from_numpy(input_ids), torch.from_numpy(view.reshape(-1, width)), torch.from_numpy(place)
        return Packed(*arrays, _runs(lengths))

    def counts(self) -> list[int]:
        """How many windows each text has."""
        counts: list[int] = self._counts.tolist()
        return counts

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each text in all its windows, (n,)."""
        return np.add.reduceat(self.window_lengths, self._first_windows)

    @cached_property
    def window_lengths(self) -> NDArray[np.int64]:
        """Of every window of every text."""
        return np.array([len(window) for window in self._windows()], np.int64)

    @cached_property
    def _counts(self) -> NDArray[np.int64]:
        return np.array([1 + len(self.more.get(row, ())) for row in range(len(self))], np.int64)

    @cached_property
    def _first_windows(self) -> NDArray[np.int64]:
        return np.cumsum(self._counts) - self._counts

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        """Where each window begins among the tokens."""
        return np.cumsum(self.window_lengths) - self.window_lengths

    @cached_property
    def _tokens(self) -> NDArray[np.int64]:
        return np.fromiter(chain.from_iterable(self._windows()), np.int64)

    def _windows(self) -> list[Sequence[int]]:
        return [window for row, ids in enumerate(self.input_ids) for window in (ids, *self.more.get(row, ()))]


def _runs(lengths: NDArray[np.int64]) -> list[tuple[int, int]]:
    starts = np.flatnonzero(np.diff(lengths, prepend=-1))
    windows = np.diff(starts, append=len(lengths))
    return list(zip(windows.tolist(), lengths[starts].tolist(), strict=True))


def merge_windows(windows: Tensor, counts: Sequence[int], rule: WindowRule) -> Tensor:
    """(w, c) -> (b, c), as classifier.aggregate does it, and with a gradient."""
    if len(counts) == len(windows):
        return windows
    return torch.stack([own.amax(0) if rule == "max" else own.mean(0) for own in torch.split(windows, list(counts))])


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
