import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import tiny_rows, train_arguments, write_rows

from pigeonhole.classifier import Classifier
from pigeonhole.errors import ConfigError
from pigeonhole.training.distillation import CACHE, Distillation, open_teacher, teacher_logits, with_teacher
from pigeonhole.training.loss import LabelLoss
from pigeonhole.training.train import run

TEXTS = [text for text, _ in tiny_rows()[:20]]
LABELS = ["account", "billing", "delivery"]


def test_the_teacher_answers_in_the_order_of_our_labels_and_once(sealed_bundle: Path, tmp_path: Path) -> None:
    teacher = open_teacher(str(sealed_bundle), LABELS[::-1])
    expected = np.stack([found.logits for found in Classifier.open(teacher, "fp32").predict(TEXTS)])
    found = teacher_logits(teacher, TEXTS, LABELS[::-1], tmp_path, 1)
    assert (found == expected[:, ::-1]).all()
    with np.load(tmp_path / CACHE, allow_pickle=False) as cached:
        kept = {**cached, "logits": np.ones((20, 3), np.float32)}
    np.savez(tmp_path / CACHE, **kept)
    assert (teacher_logits(teacher, TEXTS, LABELS, tmp_path, 1) == 1).all()
    np.savez(tmp_path / CACHE, **{**kept, "version": np.array("another")})
    assert (teacher_logits(teacher, TEXTS, LABELS, tmp_path, 1) == expected).all()


def test_what_the_teacher_said_of_other_texts_is_not_taken_for_these(sealed_bundle: Path, tmp_path: Path) -> None:
    teacher = open_teacher(str(sealed_bundle), LABELS)
    found = teacher_logits(teacher, TEXTS, LABELS, tmp_path, 1)
    assert (teacher_logits(teacher, TEXTS[::-1], LABELS, tmp_path, 1) == found[::-1]).all()
    assert (teacher_logits(teacher, TEXTS, LABELS, None, 1) == found).all()  # another process than the first keeps none


def test_a_teacher_of_other_labels_is_refused(sealed_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer.teacher=.*: has other labels than the data: 'delivery', 'drone'"):
        open_teacher(str(sealed_bundle), ["account", "billing", "drone"])


def test_the_loss_is_hintons_formula() -> None:
    random = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(5, 3, generator=random), torch.randn(5, 3, generator=random)
    label_ids = np.array([0, 1, 2, 1, 0])
    targets = torch.from_numpy(with_teacher(label_ids, teacher.numpy()))
    soft, softened = (teacher / 3).softmax(1), (logits / 3).softmax(1)
    divergence = (soft * (soft.log() - softened.log())).sum(1).mean()
    hard = torch.nn.functional.cross_entropy(logits, torch.from_numpy(label_ids))
    found = Distillation(LabelLoss(), share=0.7, temperature=3.0)(logits, targets)
    assert found.item() == pytest.approx((0.7 * 9 * divergence + 0.3 * hard).item(), rel=1e-5)
    alike = Distillation(LabelLoss(), 1.0, 2.0)(teacher, targets)
    assert alike.item() == pytest.approx(0, abs=1e-6)


def test_an_encoder_that_hears_the_teacher_alone_learns_its_answers_and_not_the_labels(
    sealed_bundle: Path, tmp_path: Path
) -> None:
    wrong = {"account": "billing", "billing": "delivery", "delivery": "account"}
    rows, right = [(text, wrong[label]) for text, label in tiny_rows()[::2]], tiny_rows()[1::2]
    data, validation = write_rows(tmp_path / "wrong.csv", rows), write_rows(tmp_path / "right.csv", right)
    arguments = [*train_arguments(tmp_path, data), "data.val=0", f"data.validation_path={validation}"]
    arguments += ["trainer.fit_head_first=false", f"trainer.teacher={sealed_bundle}", "trainer.teacher_share=1"]
    found = run(arguments)
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert max(epoch["validation_accuracy"] for epoch in history) > 0.8
    assert found["test"]["accuracy"] < 0.2
    with np.load(tmp_path / "run" / CACHE, allow_pickle=False) as cached:
        assert cached["logits"].shape == (60, 3)
