from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pigeonhole.errors import DivergedError
from pigeonhole.training import trainer
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.checkpoint import Epoch
from pigeonhole.training.head import fit_head
from pigeonhole.training.model import SCRATCH, Pretrained, TextClassifier, load_model, load_tokenizer
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


def run(folder: Path, recipe: Recipe = RECIPE, fingerprint: str = "this run") -> tuple[TextClassifier, list[Epoch]]:
    model = fresh_model()
    folder.mkdir(exist_ok=True)
    return model, trainer.train(model, rows(48), rows(24, seed=1), recipe, folder, fingerprint, lambda history: None)


def test_the_same_seed_gives_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    first, history = run(tmp_path / "first")
    second, again = run(tmp_path / "second")
    assert [epoch.loss for epoch in history] == [epoch.loss for epoch in again]
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


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


def test_training_stops_early_when_nothing_gets_better(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "epochs": 50, "learning_rate": 1e-12, "head_learning_rate": 1e-12, "patience": 2})
    assert [epoch.number for epoch in run(tmp_path / "best", recipe)[1]] == [1, 2, 3]


def test_frozen_word_embeddings_stay_as_they_were(tmp_path: Path) -> None:
    before = word_embeddings(fresh_model()).clone()
    frozen, _ = run(tmp_path / "frozen")
    moved, _ = run(tmp_path / "moved", Recipe(**{**RECIPE.__dict__, "freeze_word_embeddings": False}))
    assert torch.equal(word_embeddings(frozen), before)
    assert not torch.equal(word_embeddings(moved), before)


def test_a_loss_that_is_no_number_stops_the_run_with_advice(tmp_path: Path) -> None:
    recipe = Recipe(**{**RECIPE.__dict__, "learning_rate": 1e30, "head_learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(DivergedError, match=r"the loss became (nan|inf); try a smaller trainer.learning_rate"):
        run(tmp_path / "best", recipe)


def test_the_learning_rate_rises_then_falls_to_zero() -> None:
    factor = trainer._warmup_then_linear(0.1, 100)
    values = [factor(step) for step in range(101)]
    assert np.argmax(values) == 9
    assert values[0] == pytest.approx(0.1)
    assert values[9] == 1.0
    assert values[100] == 0.0
    assert all(np.diff(values[10:]) < 0)


def test_biases_and_norms_are_not_decayed() -> None:
    groups = trainer._parameter_groups(fresh_model(), RECIPE)
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
