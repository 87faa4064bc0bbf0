"""The head of an earlier run, for labels that have changed since: rows of those that stay are kept, new ones begin as an average.

`folder` is the run's twin (`runs/…/model`): the encoder comes from it by `model.pretrained`, the head by this.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import AutoConfig

from pigeonhole.command import say
from pigeonhole.errors import ConfigError
from pigeonhole.training.model import TextClassifier


@torch.no_grad()
def keep_head(model: TextClassifier, folder: Path, labels: Sequence[str], ancestors: Callable[[str], Sequence[str]]) -> None:
    """`ancestors` tells the labels that one was before; a label that had none begins as the average of all rows.

    Raises ConfigError for a folder that is no twin.
    """
    old = AutoConfig.from_pretrained(folder).id2label or {}
    places = {str(label): int(number) for number, label in old.items()}
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        names = set(stream.keys())
        keys = [f"{model.head_name}.{part}" for part in ("weight", "bias")]
        if not names.issuperset(keys):
            raise ConfigError(
                f"model.keep_head=true: {folder} is an encoder without a head; give the twin of a run, runs/…/model"
            )
        weight, bias = (stream.get_tensor(key) for key in keys)
    kept = 0
    for place, label in enumerate(labels):
        rows = [places[name] for name in ancestors(label) if name in places]
        kept += bool(rows)
        chosen = rows or list(range(len(bias)))
        model.head.weight[place] = weight[chosen].mean(0)
        model.head.bias[place] = bias[chosen].mean()
    if not kept:
        known = ", ".join(map(repr, sorted(places)[:5]))
        raise ConfigError(f"model.keep_head=true: {folder} has none of the data's labels; it has {known}")
    say(f"head: {kept} of {len(labels)} rows are those of {folder}, {len(labels) - kept} begin as their average")
