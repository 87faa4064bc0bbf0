"""The processes that train together: one, or as many as `torchrun` started on one machine or several.

Each step's texts are shared out among them and their gradients summed, so that a step is the same step however many there are.
Only the first one reads checkpoints, writes, publishes and prints.
"""

import os
from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

T = TypeVar("T")


class Processes:
    """Joins the group that `torchrun`'s environment names; waits for the others there."""

    def __init__(self) -> None:
        threads = torch.get_num_threads()
        state = PartialState(cpu=not torch.cuda.is_available())
        torch.set_num_threads(threads)  # among processes, PartialState chooses another number
        self.device: torch.device = state.device
        self.number: int = state.process_index
        self.count: int = state.num_processes
        assert self.count == int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def first(self) -> bool:
        return self.number == 0

    def share(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The part of `rows` for this process; sorted by length, every process gets texts of all lengths."""
        return rows[self.number :: self.count]

    def same(self, value: T | None) -> T:
        """What the first process gives, in all of them."""
        if self.count == 1:
            return cast(T, value)
        return cast(T, broadcast_object_list([value])[0])

    def sum(self, values: Sequence[float]) -> list[float]:
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """One exchange for all of them; a process without texts in a step adds nothing."""
        if self.count == 1:
            return
        gradients = [torch.zeros_like(value) if value.grad is None else value.grad for value in parameters]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        parts: tuple[Tensor, ...] = torch.split(flat, [gradient.numel() for gradient in gradients])
        for value, part in zip(parameters, parts, strict=True):
            value.grad = part.view_as(value)
