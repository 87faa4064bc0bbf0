"""Token ids in batches without padding: sorted by length within megabatches, so that the attention's view is almost full too.

Promises: the batches of an epoch are a function of lengths, size, seed and epoch alone; no Python runs for each text of a batch.
"""

from collections.abc import Callable, Mapping, Sequence
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
class HiddenStates:
    """What the lowest `layers` of an encoder give for each of n tokens, (n, d) fp32: of layers that stay as they are."""

    layers: int
    vectors: Tensor


@dataclass(frozen=True)
class Packed:
    """Windows one after the other, as training/packed.py says.

    input_ids: (n,) int64, the tokens of all w windows; view: (w, t) int64, which token stands at which place of its window, -1
    where there is none; place: (n,) int64, where each token stands in the flattened view; runs: how many windows
    follow each other with how many tokens each; hidden: of the tokens, where it is kept.
    """

    input_ids: Tensor
    view: Tensor
    place: Tensor
    runs: list[tuple[int, int]]
    hidden: HiddenStates | None = None

    def to(self, device: torch.device) -> "Packed":
        return self._map(lambda value: value.to(device, non_blocking=True))

    def pin(self) -> "Packed":
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        hidden = None if self.hidden is None else HiddenStates(self.hidden.layers, change(self.hidden.vectors))
        return Packed(change(self.input_ids), change(self.view), change(self.place), self.runs, hidden)


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
    """A split, tokenized once: ids of every text and its label id; `more`: the further windows of long texts, by row.

    hidden: of all tokens of all windows, one text after the other.
    """

    input_ids: Sequence[Sequence[int]]
    label_ids: NDArray[np.int64]
    more: Mapping[int, Sequence[Sequence[int]]] = field(default_factory=dict)
    rule: WindowRule = "truncate"
    hidden: HiddenStates | None = None

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        counts = self._counts[rows]
        packed = self.pack(np.repeat(self._first_windows[rows], counts) + _count_up(counts))
        return Batch(packed, torch.from_numpy(self.label_ids[rows]), counts.tolist())

    def pack(self, windows: NDArray[np.int64]) -> Packed:
        """Of the windows with these numbers, counted over all texts, one text after the other."""
        lengths = self.window_lengths[windows]
        width = int(lengths.max())
        place = np.repeat(np.arange(len(windows)) * width, lengths) + _count_up(lengths)
        view = np.full(len(windows) * width, -1, np.int64)
        view[place] = np.arange(len(place))
        tokens = self.tokens_of(windows)
        arrays = torch.from_numpy(self._tokens[tokens]), torch.from_numpy(view.reshape(-1, width)), torch.from_numpy(place)
        kept = self.hidden
        hidden = None if kept is None else HiddenStates(kept.layers, kept.vectors.index_select(0, torch.from_numpy(tokens)))
        return Packed(*arrays, _runs(lengths), hidden)

    def tokens_of(self, windows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers of the windows' tokens, counted over all texts, one window after the other, (n,)."""
        lengths = self.window_lengths[windows]
        return np.repeat(self._starts[windows], lengths) + _count_up(lengths)

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


def _count_up(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, … below each of them, one after the other."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


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
