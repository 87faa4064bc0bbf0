"""The training loop on Accelerate: length-sorted batches, AdamW, warm-up, linear decay, early stopping on validation macro-F1.

Promises: the same arguments on the same machine with the same number of threads give the same weights, bit for bit; the model
leaves with the weights of its best epoch; a run that was killed at any moment and started again ends with the same weights as one
that was not. Knows nothing of configuration and tracking.
"""

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pigeonhole import metrics
from pigeonhole.bundle import WindowRule
from pigeonhole.classifier import aggregate
from pigeonhole.command import say
from pigeonhole.errors import DivergedError, StoppedError
from pigeonhole.training.batches import TokenizedRows, merge_windows, pad, shuffled_batches, sorted_batches
from pigeonhole.training.checkpoint import Epoch, Progress, load_progress, save_progress, save_tensors
from pigeonhole.training.model import TextClassifier

EVALUATION_BATCH = 64
SAVE_EVERY_S = 30.0
BEST = "model.safetensors"
PROGRESS = "progress.safetensors"


@dataclass(frozen=True)
class Recipe:
    """How to train; the meaning and range of each number stand in TrainerConfig."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    warmup: float
    max_grad_norm: float
    patience: int
    freeze_word_embeddings: bool
    seed: int


def set_determinism(seed: int, threads: int) -> int:
    """Fix everything random and the number of CPU threads (0: all cores), and return that number."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(threads or os.cpu_count() or 1)
    return torch.get_num_threads()


def train(
    model: TextClassifier,
    rows: TokenizedRows,
    validation: TokenizedRows,
    recipe: Recipe,
    folder: Path,
    fingerprint: str,
    on_epoch: Callable[[list[Epoch]], None],
) -> list[Epoch]:
    """Fine-tune `model` in place, or go on where the run with this `fingerprint` was stopped in `folder`.

    `folder` gets the weights of every better epoch and, twice a minute and when told to stop, the progress. Raises DivergedError,
    StoppedError after SIGTERM, KeyboardInterrupt after SIGINT, ConfigError for a folder with another run's progress.
    """
    accelerator = Accelerator()
    model.body.get_input_embeddings().requires_grad_(not recipe.freeze_word_embeddings)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe))
    batches = math.ceil(len(rows) / recipe.batch_size)
    schedule = LambdaLR(optimizer, _warmup_then_linear(recipe.warmup, recipe.epochs * batches))
    best, saved = folder / BEST, folder / PROGRESS
    progress = Progress(epoch=1, batches=0, loss=0.0, seconds=0.0, history=[])
    if saved.exists():
        progress = load_progress(saved, fingerprint, model, optimizer, schedule)
        say(f"going on from epoch {progress.epoch}, step {schedule.last_epoch}")
    prepared = accelerator.prepare(model)
    done, steps = schedule.last_epoch, recipe.epochs * batches
    with (
        StopSignals() as signals,
        tqdm(total=steps, initial=done, desc="training", unit="step", disable=not accelerator.is_main_process) as bar,
    ):
        began = last_save = time.monotonic() - progress.seconds
        while not _finished(progress, recipe):
            for batch_loss, texts in _run_epoch(accelerator, prepared, optimizer, schedule, rows, recipe, progress):
                progress.batches += 1
                progress.loss += batch_loss * texts
                bar.set_postfix(loss=f"{batch_loss:.3f}", refresh=False)
                bar.update()
                now = time.monotonic()
                if signals.received or now - last_save >= SAVE_EVERY_S:
                    progress.seconds, last_save = now - began, now
                    save_progress(saved, fingerprint, progress, model, optimizer, schedule)
                signals.obey(f"stopped at epoch {progress.epoch}, batch {progress.batches}; the same command goes on from there")
            progress.seconds = time.monotonic() - began
            progress.history.append(_summarise(progress, len(rows), predict_logits(model, validation), validation, schedule))
            on_epoch(progress.history)
            if _best(progress.history) is progress.history[-1]:
                save_tensors(_state(model), best)
            progress.epoch, progress.batches, progress.loss = progress.epoch + 1, 0, 0.0
            save_progress(saved, fingerprint, progress, model, optimizer, schedule)
    accelerator.wait_for_everyone()
    model.load_state_dict(load_file(best))
    return progress.history


class StopSignals:
    """SIGTERM and SIGINT, kept until it is safe to obey them."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._before = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def obey(self, where: str) -> None:
        if self.received == signal.SIGINT:
            raise KeyboardInterrupt
        if self.received is not None:
            raise StoppedError(where)

    def _receive(self, number: int, _: object) -> None:
        self.received = number


def _best(history: list[Epoch]) -> Epoch:
    """The first of the best."""
    return max(history, key=lambda epoch: epoch.validation_macro_f1)


def _finished(progress: Progress, recipe: Recipe) -> bool:
    if not progress.history or progress.batches:
        return False
    last = progress.history[-1].number
    return last >= recipe.epochs or last - _best(progress.history).number >= recipe.patience


@torch.inference_mode()
def predict_logits(model: TextClassifier, rows: TokenizedRows) -> NDArray[np.float32]:
    """-> (n, c), in the order of the rows."""
    return np.stack(_forward_sorted(model, rows, lambda logits, embedding: logits, rows.rule, "evaluating"))


@torch.inference_mode()
def embed(model: TextClassifier, rows: TokenizedRows) -> NDArray[np.float32]:
    """-> (n, d), in the order of the rows."""
    return np.stack(_forward_sorted(model, rows, lambda logits, embedding: embedding, "mean", "encoding"))


def _forward_sorted(
    model: TextClassifier, rows: TokenizedRows, choose: Callable[[Tensor, Tensor], Tensor], rule: WindowRule, what: str
) -> list[NDArray[np.float32]]:
    model.eval()
    device = next(model.parameters()).device
    windows = rows.windows()
    outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(windows)
    lengths = np.fromiter(map(len, windows), np.int64, len(windows))
    for places in tqdm(sorted_batches(lengths, EVALUATION_BATCH), desc=what, unit="batch", leave=False):
        input_ids, attention_mask = pad([windows[place] for place in places])
        chosen = choose(*model(input_ids.to(device), attention_mask.to(device))).cpu().numpy()
        for place, row in zip(places, chosen, strict=True):
            outputs[place] = row
    return aggregate(outputs, rows.counts(), rule)


def _run_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    rows: TokenizedRows,
    recipe: Recipe,
    progress: Progress,
) -> Iterator[tuple[float, int]]:
    """What is left of an epoch; gives the loss and the number of texts of each step."""
    model.train()
    criterion = nn.CrossEntropyLoss()
    number = progress.epoch
    batches = shuffled_batches(rows.lengths(), recipe.batch_size, recipe.seed, number)
    for places in batches[progress.batches :]:
        batch = rows.batch(places)
        logits, _ = model(batch.input_ids.to(accelerator.device), batch.attention_mask.to(accelerator.device))
        loss = criterion(merge_windows(logits, batch.counts, rows.rule), batch.label_ids.to(accelerator.device))
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(f"epoch {number}: the loss became {value}; try a smaller trainer.learning_rate")
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), recipe.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield value, len(places)


def _summarise(
    progress: Progress, texts: int, logits: NDArray[np.float32], validation: TokenizedRows, schedule: LambdaLR
) -> Epoch:
    predicted = logits.argmax(axis=1)
    truth = validation.label_ids
    validation_loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item()
    return Epoch(
        number=progress.epoch,
        step=schedule.last_epoch,
        loss=progress.loss / texts,
        validation_loss=validation_loss,
        validation_accuracy=metrics.accuracy(truth, predicted),
        validation_macro_f1=metrics.macro_f1(truth, predicted),
        learning_rate=float(schedule.get_last_lr()[0]),
        seconds=progress.seconds,
    )


def _parameter_groups(model: TextClassifier, recipe: Recipe) -> list[dict[str, object]]:
    """Biases and norms are not decayed; the head has its own learning rate."""
    groups: list[dict[str, object]] = []
    for module, learning_rate in ((model.body, recipe.learning_rate), (model.head, recipe.head_learning_rate)):
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in trained if parameter.ndim > 1]
        free = [parameter for parameter in trained if parameter.ndim <= 1]
        groups.append({"params": decayed, "lr": learning_rate, "weight_decay": recipe.weight_decay})
        groups.append({"params": free, "lr": learning_rate, "weight_decay": 0.0})
    return groups


def _warmup_then_linear(warmup: float, steps: int) -> Callable[[int], float]:
    rising = max(1, round(warmup * steps))

    def factor(step: int) -> float:
        return min((step + 1) / rising, max(0.0, (steps - step) / max(1, steps - rising)))

    return factor


def _state(model: TextClassifier) -> dict[str, Tensor]:
    return {name: cast(Tensor, value).contiguous().cpu() for name, value in model.state_dict().items()}
