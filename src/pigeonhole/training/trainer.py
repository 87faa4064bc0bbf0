"""The training loop: batches without padding, AdamW, warm-up, linear decay, early stopping on validation macro-F1.

Promises: the same arguments on the same machine with the same numbers of threads and processes give the same weights, bit for
bit; the model leaves with the weights of its best epoch; a run that was killed at any moment and started again ends with the same
weights as one that was not. Knows nothing of configuration and tracking.
"""

import functools
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import BertForSequenceClassification

from pigeonhole import metrics
from pigeonhole.bundle import WindowRule
from pigeonhole.classifier import aggregate
from pigeonhole.command import say
from pigeonhole.decision import sigmoid
from pigeonhole.errors import ConfigError, DivergedError, OutOfMemoryError, RunError
from pigeonhole.training.batches import Batch, HiddenStates, TokenizedRows, merge_windows, shuffled_batches, sorted_batches
from pigeonhole.training.calibration import fit_label_thresholds
from pigeonhole.training.checkpoint import Epoch, Progress, read_checkpoint, restore, save_progress, save_tensors
from pigeonhole.training.dropout import replace_dropout, seeded
from pigeonhole.training.heap import keep_freed_memory
from pigeonhole.training.imbalance import draw_balanced
from pigeonhole.training.layers import freeze_layers
from pigeonhole.training.loss import several_labels_loss
from pigeonhole.training.model import TextClassifier
from pigeonhole.training.optim import Average, parameter_groups, warmup_then_linear
from pigeonhole.training.padding_free import PaddingFree
from pigeonhole.training.precision import Precision, autocast
from pigeonhole.training.processes import Processes
from pigeonhole.training.stop_signals import StopSignals
from pigeonhole.training.workers import Workers

EVALUATION_BATCH = 64
SAVE_EVERY_S = 30.0
MOST_KEPT_BYTES = 1 << 30  # of what frozen layers give for the rows: 40,000 texts of 16 tokens and 384 numbers
BEST = "model.safetensors"
PROGRESS = "progress.safetensors"

Criterion = Callable[[Tensor, Tensor], Tensor]  # logits (b, c), label_ids (b, …) -> the mean loss of the b texts


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
    average_decay: float = 0.0
    precision: Precision = "auto"
    compile: bool = False
    balanced_sampling: bool = False
    layer_decay: float = 1.0
    frozen_layers: int = 0


def set_determinism(seed: int, threads: int) -> int:
    """Fix everything random and the number of CPU threads (0: all cores, shared out among processes), and return that number."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    cast(Any, torch.utils.deterministic).fill_uninitialized_memory = False  # 5 % of a step; nothing reads what nothing wrote
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # processes of torchrun that share this machine
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // beside))
    keep_freed_memory()
    return torch.get_num_threads()


def require_compiler() -> None:
    """Of torch.compile, which looks for it at the first step only. Raises ConfigError."""
    named = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(named) is None:
        raise ConfigError(
            f"trainer.compile=true: torch.compile needs a C++ compiler, and there is no {named}; install one, name one in CXX, "
            "or leave trainer.compile out"
        )


def train(
    model: TextClassifier,
    rows: TokenizedRows,
    validation: TokenizedRows,
    recipe: Recipe,
    folder: Path,
    fingerprint: str,
    on_epoch: Callable[[list[Epoch]], None],
    criterion: Criterion = nn.functional.cross_entropy,
) -> list[Epoch]:
    """Fine-tune `model` in place, or go on where the run with this `fingerprint` was stopped in `folder`.

    `folder` gets the weights of every better epoch and, twice a minute and when told to stop, the progress. Raises DivergedError,
    StoppedError after SIGTERM, KeyboardInterrupt after SIGINT, ConfigError for a folder with another run's progress,
    OutOfMemoryError when one text does not fit into memory. Of several processes only the first one touches `folder`, calls
    `on_epoch` and ends with the best epoch's weights.
    """
    run = _Run(model, rows, validation, recipe, folder, fingerprint, on_epoch, criterion)
    try:
        return run.train()
    finally:
        run.workers.close()


class _Run:
    def __init__(
        self,
        model: TextClassifier,
        rows: TokenizedRows,
        validation: TokenizedRows,
        recipe: Recipe,
        folder: Path,
        fingerprint: str,
        on_epoch: Callable[[list[Epoch]], None],
        criterion: Criterion,
    ) -> None:
        self.processes = Processes()
        self.device = self.processes.device
        self.model = model.to(self.device)
        self.recipe = recipe
        self.best, self.saved, self.fingerprint = folder / BEST, folder / PROGRESS, fingerprint
        self.on_epoch, self.criterion = on_epoch, criterion
        model.body.get_input_embeddings().requires_grad_(not recipe.freeze_word_embeddings)
        if recipe.frozen_layers:
            freeze_layers(model, recipe.frozen_layers)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = parameter_groups(model, recipe.learning_rate, recipe.head_learning_rate, recipe.weight_decay, recipe.layer_decay)
        self.optimizer = torch.optim.AdamW(groups, fused=True)  # one pass over the weights a step: 64 -> 71 texts a CPU-second
        self.steps = recipe.epochs * math.ceil(len(rows) / recipe.batch_size)
        self.schedule = LambdaLR(self.optimizer, warmup_then_linear(recipe.warmup, self.steps))
        self.average = Average(model, recipe.average_decay)
        self.progress = self._begin()
        self.rows, self.validation = keep_hidden_states(model, rows, recipe.frozen_layers, recipe.precision), validation
        if self.processes.first:
            self.validation = keep_hidden_states(model, validation, recipe.frozen_layers, "fp32")  # as they are measured
            if recipe.frozen_layers and self.rows.hidden is None:
                say(f"the frozen layers are computed anew in every step: of BERT, up to {MOST_KEPT_BYTES >> 20:,} MiB are kept")
        replace_dropout(model)
        padding_free = PaddingFree(model)
        self.workers = Workers(model, recipe.compile)
        self.forward = torch.compile(padding_free, dynamic=True) if recipe.compile else padding_free

    def train(self) -> list[Epoch]:
        progress, done = self.progress, self.schedule.last_epoch
        bar = tqdm(total=self.steps, initial=done, desc="training", unit="step", disable=not self.processes.first)
        with StopSignals() as signals, bar:
            began = last_save = time.monotonic() - progress.seconds
            while not _finished(progress, self.recipe):
                for places, batches in self._batches():
                    loss, agreed = self._step(places, batches, signals)
                    progress.batches += 1
                    progress.loss += loss * len(places)
                    bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                    bar.update()
                    now = time.monotonic()
                    if agreed or now - last_save >= SAVE_EVERY_S:
                        progress.seconds, last_save = now - began, now
                        self._save()
                    signals.obey(agreed, self._where("stopped at"))
                progress.seconds = time.monotonic() - began
                self._end_epoch()
                signals.obey(self._agree(signals), self._where("stopped at"))
        if self.processes.first:
            self.model.load_state_dict(load_file(self.best))
        return progress.history

    def _begin(self) -> Progress:
        """Every process begins with what the first one has, or read."""
        there = self.processes.first and self.saved.exists()
        checkpoint = self.processes.same(read_checkpoint(self.saved, self.fingerprint) if there else None)
        if checkpoint is None:
            self.model.load_state_dict(self.processes.same(self.model.state_dict()))
            return Progress(epoch=1, batches=0, loss=0.0, seconds=0.0, history=[])
        progress = restore(checkpoint, self.model, self.optimizer, self.schedule, self.average.weights)
        say(f"going on from epoch {progress.epoch}, step {self.schedule.last_epoch}")
        return progress

    def _batches(self) -> Iterator[tuple[NDArray[np.int64], list[Batch]]]:
        """What is left of the epoch: each step's places, and this process's part of it; made ahead where a GPU would wait."""
        left = _batches(self.rows, self.recipe, self.progress.epoch)[self.progress.batches :]
        if self.device.type != "cuda":
            yield from ((step, self._pieces(step)) for step in left)
            return
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._pieces, left[0]) if left else None
            for number, step in enumerate(left):
                assert following is not None
                pieces = following.result()
                following = ahead.submit(self._pieces, left[number + 1]) if number + 1 < len(left) else None
                yield step, pieces

    def _pieces(self, places: NDArray[np.int64]) -> list[Batch]:
        own, parts = self.processes.share(places), self.progress.pieces * self.workers.count
        pieces = [self.rows.batch(own[part::parts]) for part in range(min(parts, len(own)))]
        return [piece.pin() for piece in pieces] if self.device.type == "cuda" else pieces

    def _step(self, places: NDArray[np.int64], batches: Sequence[Batch], signals: StopSignals) -> tuple[float, int]:
        """One step of the optimizer, the same in all processes: its loss, and the signal that any of them has received by now.

        A signal that comes after they agreed is one for the next step: a process alone must not stop.
        """
        self.model.train()
        step = self.schedule.last_epoch
        while True:
            found = self._backward(batches, len(places), step)
            parts = [found or 0.0, found is None, *signals.flags()]
            loss, failed, interrupts, terminations = self.processes.sum(parts)
            if not failed:
                break
            batches = self._smaller(places)
        self._require_finite("loss", loss)
        self.processes.sum_gradients(self.trained)
        norm = nn.utils.clip_grad_norm_(self.trained, self.recipe.max_grad_norm).item()
        self._require_finite("gradient", norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.average.update(self.schedule.last_epoch)
        return loss, signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0

    def _backward(self, batches: Sequence[Batch], texts: int, step: int) -> float | None:
        """Its part of the mean loss over the step's `texts`, with its gradients; None: out of memory."""

        def work(worker: int, pieces: Sequence[Batch]) -> tuple[float, list[Tensor | None]] | None:
            with seeded(self._seed(step, worker), self.workers.count > 1):
                return self._gradients(pieces, texts)

        shared_out = [batches[worker :: self.workers.count] for worker in range(min(self.workers.count, len(batches)))]
        results = self.workers.map(work, shared_out)
        found = [result for result in results if result is not None]
        if len(found) < len(results):
            return None
        if found:
            for value, *gradients in zip(self.trained, *(gradients for _, gradients in found), strict=True):
                value.grad = _sum(gradients)
        return sum(loss for loss, _ in found)

    def _gradients(self, pieces: Sequence[Batch], texts: int) -> tuple[float, list[Tensor | None]] | None:
        """The pieces' part of the mean loss over `texts`, and its gradient for each trained weight; None: out of memory."""
        loss, gradients = 0.0, cast(list[Tensor | None], [None] * len(self.trained))
        try:
            for piece in pieces:
                batch = piece.to(self.device)
                with autocast(self.recipe.precision, self.device):
                    logits, _ = self.forward(batch.packed)
                merged = merge_windows(logits.float(), batch.counts, self.rows.rule)
                part = self.criterion(merged, batch.label_ids) * (len(batch) / texts)
                found = torch.autograd.grad(part, self.trained, allow_unused=True)
                gradients = [_sum(pair) for pair in zip(gradients, found, strict=True)]
                loss += part.item()
        except (RuntimeError, MemoryError) as error:  # MemoryError: numpy's, who draws dropout
            if not _out_of_memory(error):
                raise
            return None
        return loss, gradients

    def _seed(self, step: int, worker: int) -> int:
        """What is random in a step, dropout, depends on nothing else: no random state has to be saved."""
        numbers = [self.recipe.seed, step, self.processes.number, *([worker] if worker else [])]
        return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)

    def _smaller(self, places: NDArray[np.int64]) -> list[Batch]:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.progress.pieces *= 2
        texts = math.ceil(len(self.processes.share(places)) / self.progress.pieces)
        if self.progress.pieces >= 2 * self.recipe.batch_size:
            raise OutOfMemoryError(
                f"{self._where('at')}: one text does not fit into memory; use a smaller model.max_length or model"
            )
        say(
            f"{self._where('at')}: out of memory; from here on {texts} texts at a time, "
            f"their gradients added up to steps of {self.recipe.batch_size} as before"
        )
        return self._pieces(places)

    def _require_finite(self, what: str, value: float) -> None:
        if math.isfinite(value):
            return
        last = f"the last good checkpoint is {self.saved}" if self.saved.exists() else "no checkpoint had been written yet"
        raise DivergedError(f"{self._where('at')}: the {what} became {value}; try a smaller trainer.learning_rate; {last}")

    def _end_epoch(self) -> None:
        """Measure, tell, keep what is best, and save; the other processes get the history."""
        progress = self.progress
        with self.average.applied():
            if self.processes.first:
                logits = predict_logits(self.model, self.validation)
                progress.history.append(_summarise(progress, len(self.rows), logits, self.validation, self.schedule))
                self.on_epoch(progress.history)
                if _best(progress.history) is progress.history[-1]:
                    save_tensors(_state(self.model), self.best)
        progress.history = self.processes.same(progress.history)
        progress.epoch, progress.batches, progress.loss = progress.epoch + 1, 0, 0.0
        self._save()

    def _save(self) -> None:
        if self.processes.first:
            save_progress(
                self.saved,
                self.fingerprint,
                self.progress,
                self.model,
                self.optimizer,
                self.schedule,
                self.average.weights,
            )

    def _agree(self, signals: StopSignals) -> int:
        interrupts, terminations = self.processes.sum([*signals.flags()])
        return signal.SIGINT if interrupts else signal.SIGTERM if terminations else 0

    def _where(self, verb: str) -> str:
        goes_on = "; the same command goes on from there" if verb == "stopped at" else ""
        return f"{verb} epoch {self.progress.epoch}, batch {self.progress.batches}{goes_on}"


def _batches(rows: TokenizedRows, recipe: Recipe, epoch: int) -> list[NDArray[np.int64]]:
    """Places in the split of each step, a function of recipe and epoch alone."""
    lengths = rows.lengths()
    if not recipe.balanced_sampling:
        return shuffled_batches(lengths, recipe.batch_size, recipe.seed, epoch)
    drawn = draw_balanced(rows.label_ids if rows.label_ids.ndim == 1 else rows.label_ids[:, 0], recipe.seed, epoch)
    return [drawn[batch] for batch in shuffled_batches(lengths[drawn], recipe.batch_size, recipe.seed, epoch)]


def _best(history: list[Epoch]) -> Epoch:
    """The first of the best."""
    return max(history, key=lambda epoch: epoch.validation_macro_f1)


def _finished(progress: Progress, recipe: Recipe) -> bool:
    if not progress.history or progress.batches:
        return False
    last = progress.history[-1].number
    return last >= recipe.epochs or last - _best(progress.history).number >= recipe.patience


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Of those that are there, in their order."""
    return functools.reduce(lambda x, y: y if x is None else x if y is None else x + y, gradients)


def _out_of_memory(error: RuntimeError | MemoryError) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def predict_logits(model: TextClassifier, rows: TokenizedRows) -> NDArray[np.float32]:
    """-> (n, c), in the order of the rows."""
    return np.stack(_forward_sorted(model, rows, lambda logits, embedding: logits, rows.rule, "evaluating"))


def keep_hidden_states(model: TextClassifier, rows: TokenizedRows, layers: int, precision: Precision) -> TokenizedRows:
    """`rows` with what the lowest `layers`, which stay as they are, give for them: computed once, not in every epoch.

    As they are where they have it, where it is more than MOST_KEPT_BYTES, or for another family than BERT.
    """
    body, tokens = model.body, int(rows.window_lengths.sum())
    if not layers or rows.hidden is not None or not isinstance(body, BertForSequenceClassification):
        return rows
    if tokens * body.config.hidden_size * torch.float32.itemsize > MOST_KEPT_BYTES:
        return rows
    vectors = torch.empty(tokens, body.config.hidden_size)

    def work(forward: PaddingFree, places: NDArray[np.int64]) -> None:
        packed = rows.pack(places).to(model.head.weight.device)
        vectors[torch.from_numpy(rows.tokens_of(places))] = forward.hidden_states(packed, layers).float().cpu()

    _in_sorted_batches(model, rows, work, "encoding", precision)
    return replace(rows, hidden=HiddenStates(layers, vectors))


def embed(model: TextClassifier, rows: TokenizedRows, precision: Precision = "fp32") -> NDArray[np.float32]:
    """-> (n, d), in the order of the rows. Raises RunError for an encoder that gives no numbers."""
    found = np.stack(_forward_sorted(model, rows, lambda logits, embedding: embedding, "mean", "encoding", precision))
    if not np.isfinite(found).all():
        raise RunError("the encoder gives embeddings that are no numbers: is the model of model.pretrained damaged?")
    return found


def _forward_sorted(
    model: TextClassifier,
    rows: TokenizedRows,
    choose: Callable[[Tensor, Tensor], Tensor],
    rule: WindowRule,
    what: str,
    precision: Precision = "fp32",
) -> list[NDArray[np.float32]]:
    outputs: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(rows.window_lengths)

    def work(forward: PaddingFree, places: NDArray[np.int64]) -> None:
        chosen = choose(*forward(rows.pack(places).to(model.head.weight.device))).cpu().numpy()
        for place, row in zip(places, chosen, strict=True):
            outputs[place] = row

    _in_sorted_batches(model, rows, work, what, precision)
    return aggregate(outputs, rows.counts(), rule)


def _in_sorted_batches(
    model: TextClassifier,
    rows: TokenizedRows,
    work: Callable[[PaddingFree, NDArray[np.int64]], None],
    what: str,
    precision: Precision,
) -> None:
    """`work` gets the numbers of the windows of each batch, without dropout and gradients."""
    model.eval()
    forward, workers = PaddingFree(model), Workers(model, compiled=False)
    batches = sorted_batches(rows.window_lengths, EVALUATION_BATCH)

    def work_once(_: int, places: NDArray[np.int64]) -> None:
        with torch.inference_mode(), autocast(precision, model.head.weight.device):
            work(forward, places)

    try:
        with tqdm(total=len(batches), desc=what, unit="batch", leave=False) as bar:
            for first in range(0, len(batches), workers.count):
                beside = batches[first : first + workers.count]
                workers.map(work_once, beside)
                bar.update(len(beside))
    finally:
        workers.close()


def _summarise(
    progress: Progress, texts: int, logits: NDArray[np.float32], validation: TokenizedRows, schedule: LambdaLR
) -> Epoch:
    truth = validation.label_ids
    accuracy, macro_f1 = scores(logits, truth)
    loss = several_labels_loss if truth.ndim == 2 else nn.functional.cross_entropy
    validation_loss = loss(torch.from_numpy(logits), torch.from_numpy(truth)).item()
    return Epoch(
        number=progress.epoch,
        step=schedule.last_epoch,
        loss=progress.loss / texts,
        validation_loss=validation_loss,
        validation_accuracy=accuracy,
        validation_macro_f1=macro_f1,
        learning_rate=float(schedule.get_last_lr()[0]),
        seconds=progress.seconds,
    )


def scores(logits: NDArray[np.float32], label_ids: NDArray[np.int64]) -> tuple[float, float]:
    """Accuracy and macro-F1 of logits (n, c)."""
    predicted = _given(logits, label_ids) if label_ids.ndim == 2 else logits.argmax(axis=1)
    return metrics.accuracy(label_ids, predicted), metrics.macro_f1(label_ids, predicted)


def _given(logits: NDArray[np.float32], label_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n, c): which labels are given under the thresholds that the bundle would get now."""
    probabilities = sigmoid(logits.astype(np.float64))
    return metrics.predict(probabilities, fit_label_thresholds(probabilities, label_ids))


def _state(model: TextClassifier) -> dict[str, Tensor]:
    return {name: cast(Tensor, value).contiguous().cpu() for name, value in model.state_dict().items()}
