"""The training loop on Accelerate: length-sorted batches, AdamW, warm-up, linear decay, early stopping on validation macro-F1.

Promises: the same arguments on the same machine with the same number of threads give the same weights, bit for bit; the model
leaves with the weights of its best epoch. Knows nothing of configuration, tracking or files but the best checkpoint.
"""

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from pigeonhole import metrics
from pigeonhole.errors import DivergedError
from pigeonhole.training.batches import TokenizedRows, shuffled_batches, sorted_batches
from pigeonhole.training.model import TextClassifier

EVALUATION_BATCH = 64


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
    checkpoint: Path,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Fine-tune `model` in place; every better epoch is written to `checkpoint`. Raises DivergedError."""
    accelerator = Accelerator()
    model.body.get_input_embeddings().requires_grad_(not recipe.freeze_word_embeddings)
    optimizer = torch.optim.AdamW(_parameter_groups(model, recipe))
    steps_per_epoch = math.ceil(len(rows) / recipe.batch_size)
    schedule = LambdaLR(optimizer, _warmup_then_linear(recipe.warmup, recipe.epochs * steps_per_epoch))
    prepared, optimizer = accelerator.prepare(model, optimizer)
    history: list[Epoch] = []
    started = time.perf_counter()
    progress = tqdm(total=recipe.epochs * steps_per_epoch, desc="training", unit="step", disable=not accelerator.is_main_process)
    with progress:
        for number in range(1, recipe.epochs + 1):
            loss = 0.0
            for batch_loss, texts in _run_epoch(accelerator, prepared, optimizer, schedule, rows, recipe, number):
                loss += batch_loss * texts
                progress.set_postfix(loss=f"{batch_loss:.3f}", refresh=False)
                progress.update()
            logits = predict_logits(model, validation)
            epoch = _summarise(number, loss / len(rows), logits, validation, schedule, time.perf_counter() - started)
            history.append(epoch)
            on_epoch(epoch)
            best = max(history, key=lambda seen: seen.validation_macro_f1)
            if best is epoch and accelerator.is_main_process:
                save_file(_state(model), checkpoint)
            if epoch.number - best.number >= recipe.patience:
                break
    accelerator.wait_for_everyone()
    model.load_state_dict(load_file(checkpoint))
    return history


@torch.inference_mode()
def predict_logits(model: TextClassifier, rows: TokenizedRows) -> NDArray[np.float32]:
    """-> (n, c), in the order of the rows."""
    return np.stack(_forward_sorted(model, rows, lambda logits, embedding: logits, "evaluating"))


@torch.inference_mode()
def embed(model: TextClassifier, rows: TokenizedRows) -> NDArray[np.float32]:
    """-> (n, d), in the order of the rows."""
    return np.stack(_forward_sorted(model, rows, lambda logits, embedding: embedding, "encoding"))


def _forward_sorted(
    model: TextClassifier, rows: TokenizedRows, choose: Callable[[Tensor, Tensor], Tensor], what: str
) -> list[NDArray[np.float32]]:
    model.eval()
    device = next(model.parameters()).device
    outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows)
    lengths = _lengths(rows)
    for places in tqdm(sorted_batches(lengths, EVALUATION_BATCH), desc=what, unit="batch", leave=False):
        batch = rows.batch(places)
        chosen = choose(*model(batch.input_ids.to(device), batch.attention_mask.to(device))).cpu().numpy()
        for place, row in zip(places, chosen, strict=True):
            outputs[place] = row
    return outputs


def _run_epoch(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    rows: TokenizedRows,
    recipe: Recipe,
    number: int,
) -> Iterator[tuple[float, int]]:
    """One pass over the rows; gives the loss and the number of texts of each step."""
    model.train()
    criterion = nn.CrossEntropyLoss()
    for places in shuffled_batches(_lengths(rows), recipe.batch_size, recipe.seed, number):
        batch = rows.batch(places)
        logits, _ = model(batch.input_ids.to(accelerator.device), batch.attention_mask.to(accelerator.device))
        loss = criterion(logits, batch.label_ids.to(accelerator.device))
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
    number: int, loss: float, logits: NDArray[np.float32], validation: TokenizedRows, schedule: LambdaLR, seconds: float
) -> Epoch:
    predicted = logits.argmax(axis=1)
    truth = validation.label_ids
    validation_loss = nn.functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(truth)).item()
    return Epoch(
        number=number,
        step=schedule.last_epoch,
        loss=loss,
        validation_loss=validation_loss,
        validation_accuracy=metrics.accuracy(truth, predicted),
        validation_macro_f1=metrics.macro_f1(truth, predicted),
        learning_rate=float(schedule.get_last_lr()[0]),
        seconds=seconds,
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


def _lengths(rows: TokenizedRows) -> NDArray[np.int64]:
    return np.fromiter((len(ids) for ids in rows.input_ids), np.int64, len(rows))


def _state(model: TextClassifier) -> dict[str, Tensor]:
    return {name: cast(Tensor, value).contiguous().cpu() for name, value in model.state_dict().items()}
