"""What a stopped run goes on from: weights, optimizer and progress, so that it ends as if it had never stopped.

Written aside and renamed: a kill while saving leaves the checkpoint before. No pickle: tensors in safetensors, numbers in its
metadata. No random state: what is random in a step is a function of seed, step and process.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import msgspec
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pigeonhole.errors import ConfigError, RunError


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to. seconds counts from the start of training; loss is the mean over the epoch's texts."""

    number: int
    step: int
    loss: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    learning_rate: float
    seconds: float


@dataclass
class Progress:
    """Where a run is: `batches` of epoch `epoch` (from 1) are done, with `loss` summed over their texts.

    `pieces`: into how many parts a batch is cut to fit into memory.
    """

    epoch: int
    batches: int
    loss: float
    seconds: float
    history: list[Epoch]
    pieces: int = 1


@dataclass(frozen=True)
class Checkpoint:
    """As it was read; `restore` puts it back."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file that is whole or not there. Raises RunError where it cannot be written."""
    aside = path.with_suffix(".tmp")
    try:
        save_file(tensors, aside, metadata)
        with aside.open("rb+") as stream:
            os.fsync(stream.fileno())
    except (SafetensorError, OSError) as error:
        aside.unlink(missing_ok=True)  # half of it would keep a full disk full
        raise RunError(f"{path}: cannot be written: {error}; the same command goes on once it can") from error
    aside.replace(path)


def save_progress(
    path: Path,
    fingerprint: str,
    progress: Progress,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LambdaLR,
    average: dict[str, Tensor],
) -> None:
    """`fingerprint` says which run this is; another run refuses to go on from it."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {f"average.{name}": value.cpu().contiguous() for name, value in average.items()}
    for place, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{place}.{key}": value.detach().cpu().contiguous() for key, value in state.items()}
    metadata = {
        "fingerprint": fingerprint,
        "progress": msgspec.json.encode(progress).decode(),
        "schedule_step": str(schedule.last_epoch),
    }
    save_tensors(tensors, path, metadata)


def read_checkpoint(path: Path, fingerprint: str) -> Checkpoint:
    """Raises ConfigError for the checkpoint of another run, or one that is damaged."""
    try:
        with safe_open(path, framework="pt") as stream:
            metadata = stream.metadata()
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118  it is no mapping
    except SafetensorError as error:
        raise ConfigError(f"{path}: is damaged ({error}); resume=never begins anew") from error
    if metadata["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{path.parent.parent} holds an unfinished run with another configuration, data, encoder, teacher or number of "
            "threads; give the same again, another folder as out=, or resume=never to begin anew"
        )
    return Checkpoint(tensors, metadata)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: Optimizer, schedule: LambdaLR, average: dict[str, Tensor]
) -> Progress:
    """Put everything back as it was saved."""
    model.load_state_dict(_below("model.", checkpoint.tensors))
    for name, value in _below("average.", checkpoint.tensors).items():
        average[name].copy_(value)
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in _below("optimizer.", checkpoint.tensors).items():
        place, key = name.split(".", 1)
        moments.setdefault(int(place), {})[key] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    _rewind(schedule, int(checkpoint.metadata["schedule_step"]))
    return msgspec.json.decode(checkpoint.metadata["progress"], type=Progress)


def _rewind(schedule: LambdaLR, step: int) -> None:
    """Set the learning rates to those of a step; they are a function of it alone."""
    schedule.last_epoch = step
    rates = [base * factor(step) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
