"""The layers of an encoder, from the embeddings up: which of them stay as they are, and how fast each of the others learns."""

import itertools
from collections.abc import Iterator

from torch import nn

from pigeonhole.errors import ConfigError
from pigeonhole.training.model import TextClassifier


def layers_of(model: TextClassifier) -> nn.ModuleList:
    """The longest list of modules in the body: BERT's `encoder.layer`, DistilBERT's `transformer.layer`."""
    lists = [module for module in model.body.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def require_layer_to_learn(model: TextClassifier, frozen: int) -> None:
    """Raises ConfigError where the encoder has no more layers than are to be frozen."""
    layers = len(layers_of(model))
    if frozen >= layers:
        raise ConfigError(f"trainer.frozen_layers={frozen}: this encoder has {layers} layers; the topmost at least has to learn")


def freeze_layers(model: TextClassifier, layers: int) -> None:
    """Embeddings and the lowest `layers` stay as they are, and give the same in every epoch: without dropout."""
    stack = layers_of(model)
    lowest = {id(parameter) for layer in stack[:layers] for parameter in layer.parameters()}
    every = {id(parameter) for parameter in stack.parameters()}
    above = _above(model, stack)
    for parameter in model.body.parameters():
        if id(parameter) in lowest or (id(parameter) not in every and id(parameter) not in above):
            parameter.requires_grad_(False)
    for module in _up_to(model, stack[layers]):
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def rates(model: TextClassifier, learning_rate: float, decay: float) -> Iterator[tuple[list[nn.Parameter], float]]:
    """The body's trained parameters and their learning rates: `decay` times as fast for each layer further down.

    What stands above the layers (a pooler) learns as the topmost one; embeddings as a layer below the lowest. Layer-wise
    learning-rate decay: Howard and Ruder 2018, "discriminative fine-tuning".
    """
    stack = layers_of(model)
    depth = {id(parameter): len(stack) - 1 - number for number, layer in enumerate(stack) for parameter in layer.parameters()}
    above = _above(model, stack)
    by_depth: dict[int, list[nn.Parameter]] = {}
    for parameter in model.body.parameters():
        if parameter.requires_grad:
            below = 0 if id(parameter) in above else len(stack)
            by_depth.setdefault(depth.get(id(parameter), below) if decay < 1 else 0, []).append(parameter)
    for number, parameters in sorted(by_depth.items()):
        yield parameters, learning_rate * decay**number


def _up_to(model: TextClassifier, layer: nn.Module) -> Iterator[nn.Module]:
    """The body's modules that it lists before `layer`."""
    return itertools.takewhile(lambda module: module is not layer, model.body.modules())


def _above(model: TextClassifier, stack: nn.ModuleList) -> set[int]:
    """Parameters that the body lists behind its layers; before them stand the embeddings."""
    ids = [id(parameter) for parameter in model.body.parameters()]
    inside = {id(parameter) for parameter in stack.parameters()}
    last = max((place for place, found in enumerate(ids) if found in inside), default=-1)
    return {found for found in ids[last + 1 :] if found not in inside}
