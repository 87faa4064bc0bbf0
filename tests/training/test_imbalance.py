import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tests.conftest import tiny_rows, train_arguments, write_rows

from pigeonhole.dataset.config import TICKETS, DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import DeadLabelError
from pigeonhole.training.imbalance import balanced_weights, draw_balanced, refuse_dead_labels
from pigeonhole.training.loss import LabelLoss
from pigeonhole.training.train import run

LABEL_IDS = np.array([0] * 50 + [1] * 8 + [2] * 2)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tickets with a tenth of their feedback and sales."""
    seen: Counter[str] = Counter()
    rows = []
    for row in read_rows(DataConfig(path=TICKETS)):
        seen[row.label] += 1
        if row.label not in ("feedback", "sales") or seen[row.label] <= 36:
            rows.append((row.text, row.label))
    return write_rows(tmp_path_factory.mktemp("cut") / "cut.csv", rows)


def tfidf(data: Path, folder: Path, *more: str) -> dict[str, Any]:
    asked = ["model=tfidf", "tracking=none", f"data.path={data}", f"out={folder / 'run'}", f"registry={folder / 'registry'}"]
    return run(
        [*asked, "tfidf.max_features=2000", "tfidf.pairs=false", "tfidf.inverse_regularisation=0.1", "data.test=0.3", *more]
    )


def test_labels_that_are_never_given_fail_the_run_and_weights_bring_them_back(cut: Path, tmp_path: Path) -> None:
    named = r"'feedback' \(11 test rows\), 'sales' \(11 test rows\);.*trainer.class_weights=balanced"
    with pytest.raises(DeadLabelError, match=named) as caught:
        tfidf(cut, tmp_path / "dead")
    assert caught.value.exit_code == 3
    assert not list((tmp_path / "dead").rglob("manifest.json"))
    weighed = tfidf(cut, tmp_path / "weighed", "trainer.class_weights=balanced")
    assert min(weighed["test"]["per_class"][label]["recall"] for label in ("feedback", "sales")) > 0.2


def test_weights_are_scikit_learns_balanced_ones_and_a_row_weighs_one_on_average() -> None:
    expected = compute_class_weight("balanced", classes=np.arange(3), y=LABEL_IDS)
    assert balanced_weights(LABEL_IDS, 3) == pytest.approx(expected)
    assert balanced_weights(LABEL_IDS, 3)[LABEL_IDS].mean() == pytest.approx(1)
    assert balanced_weights(np.array([0, 0, 2, 2]), 3).tolist() == [1, 0, 1]


def test_an_epoch_that_is_drawn_has_each_label_alike_and_all_of_the_rare_rows() -> None:
    drawn = draw_balanced(LABEL_IDS, seed=0, epoch=1)
    assert np.bincount(LABEL_IDS[drawn]).tolist() == [20, 20, 20]
    assert Counter(drawn.tolist())[58] == 10
    assert {50, 51, 52, 53, 54, 55, 56, 57} <= set(drawn.tolist())
    assert (draw_balanced(LABEL_IDS, 0, 1) == drawn).all()
    assert (draw_balanced(LABEL_IDS, 0, 2) != drawn).any()


def test_focal_loss_is_its_formula_and_cross_entropy_at_gamma_zero() -> None:
    logits, label_ids = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    p = logits.softmax(1)[torch.arange(6), label_ids]
    weights = np.array([0.5, 1.0, 3.0])
    expected = (torch.tensor(weights).float()[label_ids] * (1 - p) ** 2 * -p.log()).mean()
    assert LabelLoss(0.0, weights, 2.0)(logits, label_ids).item() == pytest.approx(expected.item(), rel=1e-5)
    plain = torch.nn.functional.cross_entropy(logits, label_ids)
    assert LabelLoss()(logits, label_ids).item() == pytest.approx(plain.item(), rel=1e-6)
    sure = torch.tensor([[60.0, -60.0]], requires_grad=True)  # p rounds to one
    (gradient,) = torch.autograd.grad(LabelLoss(gamma=0.5)(sure, torch.tensor([0])), sure)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("key", ["trainer.loss=focal", "trainer.class_weights=balanced", "trainer.sampling=balanced"])
def test_each_key_changes_what_the_trainer_learns(key: str, tmp_path: Path) -> None:
    rows = [row for place, row in enumerate(tiny_rows()) if place < 100 or place % 5 == 0]
    data = write_rows(tmp_path / "rows.csv", rows)
    losses = {}
    for name, more in (("plain", []), ("changed", [key])):
        given = [*train_arguments(tmp_path / name, data), "trainer.epochs=1", "trainer.fit_head_first=false", *more]
        run(given)
        losses[name] = json.loads((tmp_path / name / "run/history.jsonl").read_text())["loss"]
    assert losses["plain"] != losses["changed"]


def test_labels_without_test_rows_are_not_dead() -> None:
    found = {"a": {"support": 0, "recall": 0.0}, "b": {"support": 9, "recall": 0.5}, "c": {"support": 5, "recall": 0.0}}
    assert refuse_dead_labels(found, allowed=True) == ["c"]
    with pytest.raises(DeadLabelError, match=r"'c' \(5 test rows\);"):
        refuse_dead_labels(found, allowed=False)


def test_a_label_that_luck_may_have_missed_is_told_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert refuse_dead_labels({"a": {"support": 4, "recall": 0.0}, "b": {"support": 4, "recall": 0.25}}, allowed=False) == ["a"]
    assert "not one test row was recognised of 'a' (4 test rows)" in capsys.readouterr().err
