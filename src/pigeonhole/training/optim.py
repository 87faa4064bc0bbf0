"""What moves the weights: AdamW by parameter groups, the learning rate's way up and down, and an average of the last weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pigeonhole.training.layers import rates
from pigeonhole.training.model import TextClassifier

AVERAGE_EVERY = 4  # steps; each time costs as much as 2 % of a step


def parameter_groups(
    model: TextClassifier, learning_rate: float, head_learning_rate: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, object]]:
    """Biases and norms are not decayed; the head has its own learning rate."""
    groups: list[dict[str, object]] = []
    body = rates(model, learning_rate, layer_decay)
    for trained, rate in (*body, (list(model.head.parameters()), head_learning_rate)):
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        free = [parameter for parameter in trained if parameter.ndim <= 1]
        groups.append({"params": decayed, "lr": rate, "weight_decay": weight_decay})
        groups.append({"params": free, "lr": rate, "weight_decay": 0.0})
    return groups


def warmup_then_linear(warmup: float, steps: int) -> Callable[[int], float]:
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

    return factor


class Average:
    """The exponential moving average of the trained weights, which generalises better than where the last steps end.

    `decay`, by step: 0 keeps no average, and what is trained is what leaves. While there are few of them it is their plain mean:
    the weights of the beginning have no share in it, which would be nine tenths after twenty steps of decay 0.995.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._trained = {name: value for name, value in model.named_parameters() if value.requires_grad and decay}
        self.weights = {name: value.detach().clone() for name, value in self._trained.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """After each step, with how many there have been."""
        if self._trained and (steps < AVERAGE_EVERY or steps % AVERAGE_EVERY == 0):
            share = max(1 - self._decay**AVERAGE_EVERY, 1 / max(1, steps // AVERAGE_EVERY))
            torch._foreach_lerp_(list(self.weights.values()), list(self._trained.values()), share)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside, and its own again outside."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, value in self._trained.items():
            kept = value.detach().clone()
            value.copy_(self.weights[name])
            self.weights[name].copy_(kept)
