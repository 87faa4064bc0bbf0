"""The threads of one process that train together: each computes a part of a step's texts, with cores of its own.

Two threads inside every operator are far from twice as fast as one, for much of a step lies in operators too small to share out.
The parts, their random numbers and the order in which their gradients are added do not depend on which thread is done first.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import BertForSequenceClassification

from pigeonhole.training.model import TextClassifier

Part = TypeVar("Part")
Result = TypeVar("Result")
MOST = 4  # each one has gradients of its own


class Workers:
    """One for a model that is compiled, lies on a GPU or is computed by other code, whose random numbers have one source."""

    def __init__(self, model: TextClassifier, compiled: bool) -> None:
        threads, device = torch.get_num_threads(), next(model.parameters()).device
        several = isinstance(model.body, BertForSequenceClassification) and device.type == "cpu" and not compiled
        self.count = min(threads, MOST) if several else 1
        self._pool = ThreadPoolExecutor(self.count, "worker", torch.set_num_threads, (threads // self.count,))

    def close(self) -> None:
        """Its threads end; one that is never asked for anything has none."""
        self._pool.shutdown()

    def map(self, work: Callable[[int, Part], Result], parts: Sequence[Part]) -> list[Result]:
        """`work(number, part)` of every part, in their order; all at the same time where there are several workers."""
        if self.count == 1:
            return [work(number, part) for number, part in enumerate(parts)]
        return list(self._pool.map(work, range(len(parts)), parts))
