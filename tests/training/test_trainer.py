import itertools
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from pigeonhole.bundle import WindowRule
from pigeonhole.errors import DivergedError, RunError, StoppedError
from pigeonhole.training import optim, trainer
from pigeonhole.training.batches import Batch, TokenizedRows
from pigeonhole.training.checkpoint import Epoch, Progress, save_progress
from pigeonhole.training.head import fit_head
from pigeonhole.training.model import TextClassifier, load_model, load_tokenizer
from pigeonhole.training.pretrained import SCRATCH, Pretrained
from pigeonhole.training.trainer import Recipe

RECIPE = Recipe(
    epochs=3,
    batch_size=8,
    learning_rate=2e-3,
    head_learning_rate=1e-2,
    weight_decay=0.01,
    warmup=0.1,
    max_grad_norm=1.0,
    patience=3,
    freeze_word_embeddings=True,
    seed=0,
    precision="fp32",  # curves are compared to 1e-5 below, and not every machine computes bf16
)


def rows(count: int, seed: int = 0) -> TokenizedRows:
    """Texts whose label is which of three tokens stands in them."""
    random = np.random.default_rng(seed)
    label_ids = np.arange(count) % 3
    fillers = [random.integers(8, 20, random.integers(1, 6)).tolist() for _ in label_ids]
    return TokenizedRows([[2, 5 + int(label), *filler, 3] for label, filler in zip(label_ids, fillers, strict=True)], label_ids)


def fresh_model() -> TextClassifier:
    trainer.set_determinism(0, 1)
    scratch = Pretrained(SCRATCH, local=True)
    tokenizer = load_tokenizer(scratch, ["abcdefghijklmnopqrstuvwxyz"])
    return load_model(scratch, ["a", "b", "c"], tokenizer, averaging_layer=True, max_length=32)


def word_embeddings(model: TextClassifier) -> torch.Tensor:
    return dict(model.named_parameters())["body.bert.embeddings.word_embeddings.weight"].detach()


def run(
    folder: Path, recipe: Recipe = RECIPE, fingerprint: str = "this run", at: Callable[[], None] = lambda: None
) -> tuple[TextClassifier, list[Epoch]]:
    """`at` is called in the middle of every step, and of the end of every epoch."""
    model = fresh_model()
    folder.mkdir(exist_ok=True)

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        at()
        return torch.nn.functional.cross_entropy(logits, label_ids)

    return model, trainer.train(model, rows(48), rows(24, seed=1), recipe, folder, fingerprint, lambda history: at(), criterion)


def stop_at(moment: int, number: int = signal.SIGTERM) -> Callable[[], None]:
    """For `run`: at the moment with this number, from 1, the process gets a signal."""
    moments = itertools.count(1)

    def at() -> None:
        if next(moments) == moment:
            signal.raise_signal(number)

    return at


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    first, history = run(tmp_path / "first")
    second, again = run(tmp_path / "second")
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in again]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def logits_of_steps(folder: Path, seed: int) -> list[torch.Tensor]:
    """Of four steps with weights that do not move and texts that are alike: where they differ, it is by dropout."""
    model = fresh_model()
    seen: list[torch.Tensor] = []

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        seen.append(logits.detach().clone())
        return torch.nn.functional.cross_entropy(logits, label_ids)

    still: dict[str, Any] = {"learning_rate": 1e-30, "head_learning_rate": 1e-30, "weight_decay": 0.0}
    recipe = Recipe(**{**RECIPE.__dict__, **still, "epochs": 2, "seed": seed})
    alike = TokenizedRows([[2, 5, 9, 3]] * 16, np.zeros(16, np.int64))
    folder.mkdir()
    trainer.train(model, alike, alike, recipe, folder, "run", lambda history: None, criterion)
    return seen


def test_each_step_drops_what_its_number_and_the_seed_say(tmp_path: Path) -> None:
    first, second = logits_of_steps(tmp_path / "first", 0), logits_of_steps(tmp_path / "second", 1)
    assert len(first) == len(second) == 4
    assert not any(torch.equal(one, other) for one, other in itertools.combinations([*first, *second], 2))


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    other = Recipe(**{**RECIPE.__dict__, "seed": 1})
    assert run(tmp_path / "a")[1][-1].loss != run(tmp_path / "b", other)[1][-1].loss


def test_one_batch_can_be_learned_by_heart(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 60, "batch_size": 12, "patience": 60})
    model = fresh_model()
    history = trainer.train(model, rows(12), rows(12), recipe, tmp_path, "this run", lambda history: None)
    assert history[-1].loss < 0.05
    assert max(epoch.validation_accuracy for epoch in history) == 1.0


def test_the_model_leaves_with_the_weights_of_its_best_epoch(tmp_path: Path) -> None:
    model, history = run(tmp_path)
    best = max(history, key=lambda epoch: epoch.validation_macro_f1)
    logits = trainer.predict_logits(model, rows(24, seed=1))
    assert (logits.argmax(axis=1) == rows(24, seed=1).label_ids).mean() == pytest.approx(best.validation_accuracy)
    saved = load_file(tmp_path / trainer.BEST)
    assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items())


def test_weights_of_later_epochs_that_are_worse_do_not_leave(tmp_path: Path) -> None:
    """Judged by wrong labels, the more it learns the worse it gets."""
    model, right = fresh_model(), rows(24, seed=1)
    wrong = TokenizedRows(right.input_ids, (right.label_ids + 1) % 3)
    seen: list[torch.Tensor] = []

    def note(history: list[Epoch]) -> None:
        seen.append(model.head.weight.detach().clone())

    history = trainer.train(model, rows(48), wrong, RECIPE, tmp_path, "run", note)
    best = max(history, key=lambda epoch: epoch.validation_macro_f1)
    assert best.number < len(history) == len(seen)
    assert torch.equal(model.head.weight, seen[best.number - 1])
    assert torch.equal(load_file(tmp_path / trainer.BEST)["head.weight"], seen[best.number - 1])


def test_training_stops_early_when_nothing_gets_better(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 50, "learning_rate": 1e-12, "head_learning_rate": 1e-12, "patience": 2})
    assert [epoch.number for epoch in run(tmp_path / "best", recipe)[1]] == [1, 2, 3]


def test_a_minute_of_work_is_all_that_a_kill_can_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock on which a step takes seven seconds."""
    clock, saved = itertools.count(0.0, 7.0), [0.0]

    def note(path: Path, fingerprint: str, progress: Progress, *rest: Any) -> None:
        saved.append(progress.seconds)
        save_progress(path, fingerprint, progress, *rest)

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(trainer, "save_progress", note)
    recipe = Recipe(**{**RECIPE.__dict__, "batch_size": 2, "epochs": 1})
    run(tmp_path / "run", recipe)
    assert saved[-1] >= 24 * 7
    assert max(np.diff(saved)) <= 60
    assert len(saved) < 12  # and not after every step


def test_the_best_epoch_is_the_first_with_the_highest_macro_f1_whatever_its_loss_and_accuracy() -> None:
    measured = [(0.1, 0.9, 0.6), (0.4, 0.7, 0.8), (0.3, 0.8, 0.8), (0.2, 0.6, 0.7)]
    history = [
        Epoch(number, 6 * number, 0.5, loss, accuracy, macro_f1, 1e-3, 1.0)
        for number, (loss, accuracy, macro_f1) in enumerate(measured, 1)
    ]
    assert trainer._best(history).number == 2


class Noting(TokenizedRows):
    """Rows that note which of them were asked for."""

    asked: ClassVar[list[list[int]]] = []

    def batch(self, rows: NDArray[np.int64]) -> Batch:
        self.asked.append(rows.tolist())
        return super().batch(rows)


@pytest.mark.parametrize("balanced", [False, True])
def test_each_epoch_has_an_order_of_its_own_and_draws_its_own_rows(balanced: bool, tmp_path: Path) -> None:
    """Of 40 rows 24 have the first label: where labels are balanced, an epoch has 14 of them at most."""
    label_ids = np.array([0] * 24 + [1] * 8 + [2] * 8)
    some = Noting([[2, 5 + int(label), 8 + place % 12, 3] for place, label in enumerate(label_ids)], label_ids)
    some.asked.clear()
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 2, "balanced_sampling": balanced})
    trainer.train(fresh_model(), some, rows(24), recipe, tmp_path, "run", lambda history: None)
    first, second = some.asked[:5], some.asked[5:]
    assert first != second
    drawn = [sorted(itertools.chain(*epoch)) for epoch in (first, second)]
    assert (drawn[0] == drawn[1]) != balanced
    assert balanced or drawn[0] == list(range(40))


def test_a_longer_gradient_is_shortened(tmp_path: Path) -> None:
    """To a norm beside which AdamW's epsilon, 1e-8, is large: then its steps are next to none."""
    moved = []
    for norm in (1.0, 1e-13):
        recipe = Recipe(**{**RECIPE.__dict__, "epochs": 1, "weight_decay": 0.0, "max_grad_norm": norm})
        model, _ = run(tmp_path / str(norm), recipe)
        moved.append((model.head.weight - fresh_model().head.weight).abs().max().item())
    assert moved[1] < 0.001 * moved[0]


def test_the_learning_rate_reaches_zero_with_the_last_step_though_the_last_batch_is_not_full(tmp_path: Path) -> None:
    history = trainer.train(fresh_model(), rows(20), rows(24, seed=1), RECIPE, tmp_path, "run", lambda history: None)
    assert [epoch.step for epoch in history] == [3, 6, 9]
    assert [epoch.learning_rate for epoch in history] == pytest.approx([2e-3 * 6 / 8, 2e-3 * 3 / 8, 0])


@pytest.mark.parametrize("rule", ["mean", "max"])
def test_the_windows_of_a_text_are_one_text_to_training_and_to_what_measures_it(rule: WindowRule, tmp_path: Path) -> None:
    windows = [[2, 5, 9, 3], [2, 6, 12, 14, 3], [2, 7, 3], [2, 6, 8, 3]]
    model = fresh_model()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    label_ids = np.array([1, 0])
    text = TokenizedRows([windows[0], windows[3]], label_ids, more={0: windows[1:3]}, rule=rule)
    each = TokenizedRows(windows, np.zeros(4, np.int64))
    alone, embedded = trainer.predict_logits(model, each), trainer.embed(model, each)
    expected = np.stack([alone[:3].max(0) if rule == "max" else alone[:3].mean(0), alone[3]])
    assert trainer.predict_logits(model, text) == pytest.approx(expected, abs=1e-5)
    assert trainer.embed(model, text) == pytest.approx(np.stack([embedded[:3].mean(0), embedded[3]]), abs=1e-5)
    learned: list[NDArray[np.float32]] = []

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        learned.append(logits[label_ids.argsort(descending=True)].detach().numpy())
        return torch.nn.functional.cross_entropy(logits, label_ids)

    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 1})
    trainer.train(model, text, text, recipe, tmp_path, "run", lambda history: None, criterion)
    assert learned[0] == pytest.approx(expected, abs=1e-5)


def test_what_is_measured_has_no_dropout() -> None:
    model, some = fresh_model(), rows(24)
    expected = trainer.predict_logits(model.eval(), some)
    assert np.array_equal(trainer.predict_logits(model.train(), some), expected)


def test_frozen_word_embeddings_stay_as_they_were(tmp_path: Path) -> None:
    before = word_embeddings(fresh_model()).clone()
    frozen, _ = run(tmp_path / "frozen")
    moved, _ = run(tmp_path / "moved", Recipe(**{**RECIPE.__dict__, "freeze_word_embeddings": False}))
    assert torch.equal(word_embeddings(frozen), before)
    assert not torch.equal(word_embeddings(moved), before)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "SAVE_EVERY_S", 0.0)
    steps = 0

    def breaks(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        nonlocal steps
        steps += 1
        return torch.nn.functional.cross_entropy(logits, label_ids) * (torch.inf if steps == 8 else 1)

    with pytest.raises(DivergedError, match=r"at epoch 2, batch 1: the loss became inf; .*last good checkpoint is .*progress"):
        trainer.train(fresh_model(), rows(48), rows(24), RECIPE, tmp_path, "this run", lambda history: None, breaks)
    assert steps == 8
    saved = load_file(tmp_path / trainer.PROGRESS)
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_weights_that_run_away_stop_the_run_with_advice(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "learning_rate": 1e30, "head_learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(DivergedError, match=r"the (loss|gradient) became (nan|inf); try a smaller trainer.learning_rate; no"):
        run(tmp_path / "best", recipe)


def needs_room_for(texts: int) -> trainer.Criterion:
    """A loss that asks the allocator for a thousand terabytes when it gets more than `texts` at once."""

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        if len(label_ids) > texts:
            torch.empty(2**50)
        return torch.nn.functional.cross_entropy(logits, label_ids)

    return criterion


def test_out_of_memory_halves_the_batch_and_adds_gradients_up_to_the_same_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = []
    for room in (8, 2):
        model = fresh_model()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        folder = tmp_path / str(room)
        folder.mkdir()
        criterion = needs_room_for(room)
        history = trainer.train(model, rows(48), rows(24), RECIPE, folder, "run", lambda history: None, criterion)
        losses.append([epoch.loss for epoch in history])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    told = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert [line.split("; ")[1] for line in told] == [
        "from here on 4 texts at a time, their gradients added up to steps of 8 as before",
        "from here on 2 texts at a time, their gradients added up to steps of 8 as before",
    ]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."), MemoryError("Unable to allocate 8 GiB")]
)
def test_out_of_memory_on_a_gpu_and_in_numpy_is_met_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        if len(label_ids) > 4:
            raise error
        return torch.nn.functional.cross_entropy(logits, label_ids)

    trainer.train(fresh_model(), rows(48), rows(24), RECIPE, tmp_path, "run", lambda history: None, criterion)
    assert "out of memory; from here on 4 texts at a time" in capsys.readouterr().err


def test_a_text_that_does_not_fit_alone_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"one text does not fit into memory; use a smaller model\.max_length"):
        trainer.train(fresh_model(), rows(48), rows(24), RECIPE, tmp_path, "run", lambda history: None, needs_room_for(0))


def test_another_failure_in_a_step_is_not_taken_for_memory(tmp_path: Path) -> None:
    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train(fresh_model(), rows(48), rows(24), RECIPE, tmp_path, "run", lambda history: None, criterion)


def test_the_weights_that_leave_are_the_average_of_the_last_ones(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "average_decay": 0.9, "epochs": 1})
    head = [fresh_model().head.weight.detach().clone()]

    def criterion(logits: torch.Tensor, label_ids: torch.Tensor) -> torch.Tensor:
        head.append(model.head.weight.detach().clone())
        return torch.nn.functional.cross_entropy(logits, label_ids)

    model = fresh_model()
    trainer.train(model, rows(96), rows(24), recipe, tmp_path, "run", lambda history: None, criterion)
    saved = load_file(tmp_path / trainer.PROGRESS)
    average, *after_each_step = [*head[1:], saved["model.head.weight"]]
    taken = after_each_step[optim.AVERAGE_EVERY - 1 :: optim.AVERAGE_EVERY]
    assert len(taken) > 1
    for number, weight in enumerate(taken, 1):
        average = average + max(1 - 0.9**optim.AVERAGE_EVERY, 1 / number) * (weight - average)
    torch.testing.assert_close(saved["average.head.weight"], average)
    torch.testing.assert_close(model.head.weight.detach(), average)


def test_an_averaged_run_that_was_stopped_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "average_decay": 0.9})
    expected, _ = run(tmp_path / "undisturbed", recipe)
    with monkeypatch.context() as context:
        context.setattr(trainer, "SAVE_EVERY_S", 0.0)
        with pytest.raises(StoppedError):
            run(tmp_path / "stopped", recipe, at=stop_at(9))
    found, _ = run(tmp_path / "stopped", recipe)
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name


def test_embeddings_in_bf16_are_those_of_fp32_to_its_rounding_and_in_the_order_of_the_rows() -> None:
    model, some = fresh_model(), rows(200)
    rounded, exact = trainer.embed(model, some, "bf16"), trainer.embed(model, some)
    assert not np.array_equal(rounded, exact)
    assert np.linalg.norm(rounded - exact) < 0.02 * np.linalg.norm(exact)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    factor = optim.warmup_then_linear(0.1, 100)
    values = [factor(step) for step in range(101)]
    assert np.argmax(values) == 9
    assert values[0] == pytest.approx(0.1)
    assert values[9] == 1.0
    assert values[100] == 0.0
    assert all(np.diff(values[10:]) < 0)


def test_biases_and_norms_are_not_decayed() -> None:
    groups = optim.parameter_groups(fresh_model(), 2e-3, 1e-2, 0.01)
    for group in groups:
        dimensions = {parameter.ndim for parameter in group["params"]}  # type: ignore[attr-defined]
        assert dimensions <= {1} if group["weight_decay"] == 0 else dimensions <= {2}
    assert {group["lr"] for group in groups} == {RECIPE.learning_rate, RECIPE.head_learning_rate}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_head_is_fitted_to_the_embeddings(classes: int) -> None:
    random = np.random.default_rng(0)
    label_ids = np.arange(300) % classes
    embeddings = (0.1 * random.normal(size=(300, 8)) + 0.5 * np.eye(8)[label_ids]).astype(np.float32)
    head = torch.nn.Linear(8, classes)
    fit_head(head, embeddings, label_ids)
    predicted = head(torch.from_numpy(embeddings)).argmax(dim=1).numpy()
    assert (predicted == label_ids).mean() > 0.99
