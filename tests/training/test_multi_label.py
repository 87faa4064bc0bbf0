"""A model whose texts may have several labels, or none, from rows to its sealed bundle and through every command behind it."""

import csv
import itertools
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from tests.conftest import HAPPENINGS, OBJECTS, train_arguments, write_rows
from transformers import pipeline

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation import compare, evaluate
from pigeonhole.evaluation.labelled import read_own_split
from pigeonhole.promotion import promote
from pigeonhole.training.calibration import fit_label_thresholds, fit_temperature
from pigeonhole.training.head import INVERSE_REGULARISATION, fit_head
from pigeonhole.training.loss import several_labels_loss
from pigeonhole.training.train import run


def several_rows() -> list[tuple[str, str]]:
    """A text on the objects of one, two or no label; 270 in all."""
    draw = random.Random(0)
    labels = sorted(OBJECTS)
    sets = [*[(label,) for label in labels] * 30, *itertools.combinations(labels, 2), ()]
    sets += [*list(itertools.combinations(labels, 2)) * 45, *[()] * 38]
    rows = []
    for number, chosen in enumerate(sets):
        parts = [draw.choice(HAPPENINGS).format(draw.choice(OBJECTS[label])) for label in chosen]
        rows.append((" and ".join(parts) + f" {number}" if parts else f"nothing of that kind, number {number}", "|".join(chosen)))
    return rows


@pytest.fixture(scope="module")
def several_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("several") / "several.csv", several_rows())


@pytest.fixture(scope="module")
def several_run(tmp_path_factory: pytest.TempPathFactory, several_data: Path) -> dict[str, Any]:
    return run([*train_arguments(tmp_path_factory.mktemp("several-run"), several_data), "data.task=multi_label"])


def test_each_label_is_learned_and_measured(several_run: dict[str, Any]) -> None:
    test = several_run["test"]
    assert test["micro_f1"] > 0.9
    assert test["mean_average_precision"] > 0.9
    assert test["accuracy"] > several_run["baselines"]["majority"]["accuracy"]
    assert test["per_class"].keys() == set(OBJECTS)


def test_the_bundle_says_what_it_is_and_the_server_s_door_opens_it(several_run: dict[str, Any]) -> None:
    bundle = open_bundle(several_run["bundle"])
    manifest = bundle.manifest
    assert (manifest.task, manifest.accept_score) == ("multi_label", 0.5)
    assert "Answers with any number of labels" in (bundle.folder / "README.md").read_text()
    text = next(text for text, labels in several_rows() if labels == "billing|delivery")
    both, none = Classifier.open(bundle).predict([text, "nothing of that kind, number 8"])
    assert both.labels == ("billing", "delivery")
    assert none.labels == ()
    logits = both.logits.astype(np.float64) / manifest.temperature
    assert both.probabilities == pytest.approx(expit(logits))


def test_the_twin_gives_each_label_a_sigmoid_of_its_own_in_a_transformers_pipeline(several_run: dict[str, Any]) -> None:
    twin: Any = pipeline("text-classification", model=str(Path(several_run["run"]) / "model"), top_k=None, device="cpu")
    text = next(text for text, labels in several_rows() if labels == "billing|delivery")
    bundle = open_bundle(several_run["bundle"])
    logits = Classifier.open(bundle, "fp32").predict([text])[0].logits.astype(np.float64)
    expected = dict(zip(bundle.manifest.labels, expit(logits), strict=True))
    assert {answer["label"]: answer["score"] for answer in twin([text])[0]} == pytest.approx(expected, abs=1e-5)


def test_the_reference_keeps_all_labels_given_and_true(several_run: dict[str, Any]) -> None:
    table = pq.read_table(Path(several_run["run"]) / "bundle" / "reference.parquet")
    same = [
        set(said) == set(true) for said, true in zip(table["labels"].to_pylist(), table["true_labels"].to_pylist(), strict=True)
    ]
    assert np.mean(same) == pytest.approx(several_run["test"]["accuracy"])
    assert (Path(several_run["run"]) / "plots" / "labels.png").stat().st_size > 5_000


def test_the_same_seed_gives_the_same_weights(several_data: Path, several_run: dict[str, Any], tmp_path: Path) -> None:
    short = [*train_arguments(tmp_path, several_data), "data.task=multi_label", "trainer.epochs=1", "export.min_agreement=0"]
    first = run(short)
    again = run([*short, f"out={tmp_path / 'again'}"])
    weights = [(Path(each["run"]) / "bundle" / "model.onnx.data").read_bytes() for each in (first, again)]
    assert weights[0] == weights[1]
    assert several_run["version"] != first["version"]


def test_its_own_test_split_is_measured_as_training_measured_it(several_run: dict[str, Any], tmp_path: Path) -> None:
    found = evaluate.run([f"bundle={several_run['bundle']}", f"out={tmp_path}"])
    assert found["test"] == several_run["test"]
    report = (tmp_path / "report.md").read_text()
    assert "| all labels right | micro-F1 |" in report
    assert "![Label by label](labels.png)" in report
    assert (tmp_path / "labels.png").exists()


def test_another_file_is_measured_with_its_own_separator(several_run: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [("text", "label"), *((text, labels.replace("|", ";")) for text, labels in several_rows()[::3])]
        )
    found = evaluate.run([f"bundle={several_run['bundle']}", f"data.path={path}", "data.label_separator=;"])
    assert found["test"]["micro_f1"] > 0.9


def test_a_report_compares_two_versions_label_by_label(several_run: dict[str, Any], tmp_path: Path) -> None:
    found = compare.run([f"base={several_run['bundle']}", f"candidate={several_run['bundle']}", f"out={tmp_path}"])
    assert (found["verdict"], found["flips"]) == ("no difference", {"now_wrong": 0, "now_right": 0})
    assert {part["name"] for part in found["parts"] if part["kind"] == "label"} == set(OBJECTS)


def test_the_gate_lets_a_first_version_in_that_beats_the_commonest_label(several_run: dict[str, Any], tmp_path: Path) -> None:
    found = promote.run(
        [
            f"candidate={several_run['bundle']}",
            f"registry={tmp_path}",
            "gate.behaviour_floor=0",
            "gate.latency_ms=5000",
        ]
    )
    assert found["decision"] == "PROMOTE"
    assert found["test"]["micro_f1"] == several_run["test"]["micro_f1"]


def test_rows_keep_their_side_when_a_bundle_reads_its_data_again(several_run: dict[str, Any]) -> None:
    train, test = read_own_split(open_bundle(several_run["bundle"]))
    assert not {row.text for row in train.rows} & {row.text for row in test.rows}
    assert {label for row in test.rows for label in row.label.split("|")} == {*OBJECTS, ""}


def test_the_loss_is_the_sum_of_each_label_s_own() -> None:
    logits, truth = torch.tensor([[2.0, -1.0], [0.5, 0.0]]), torch.tensor([[1, 0], [0, 1]])
    p = expit(logits.numpy())
    expected = -(np.log(p[0, 0]) + np.log(1 - p[0, 1]) + np.log(1 - p[1, 0]) + np.log(p[1, 1])) / 2
    assert several_labels_loss(logits, truth).item() == pytest.approx(expected)


def test_the_head_is_a_logistic_regression_for_each_label() -> None:
    random_ = np.random.default_rng(0)
    features = random_.normal(size=(200, 4)).astype(np.float32)
    truth = np.stack([features[:, 0] > 0, features[:, 1] + random_.normal(size=200) > 1, np.ones(200)], axis=1).astype(np.int64)
    head = torch.nn.Linear(4, 3)
    fit_head(head, features, truth)
    strength = INVERSE_REGULARISATION / float(features.var())
    for label in (0, 1):
        expected = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(features.astype(np.float64), truth[:, label])
        assert head.weight[label].detach().numpy() == pytest.approx(expected.coef_[0], abs=1e-5)
    assert torch.sigmoid(head(torch.from_numpy(features)))[:, 2].min() > 0.99


def test_the_temperature_undoes_what_made_the_sigmoids_too_sure() -> None:
    random_ = np.random.default_rng(0)
    logits = random_.normal(0, 2, size=(4000, 3))
    truth = (random_.random((4000, 3)) < expit(logits)).astype(np.int64)
    assert fit_temperature(3 * logits, truth) == pytest.approx(3, rel=0.05)


def test_a_threshold_is_the_best_for_its_label_and_no_further_from_a_half_than_that_asks_for() -> None:
    probabilities = np.array([[0.9, 0.2, 0.4], [0.7, 0.3, 0.4], [0.6, 0.1, 0.2], [0.1, 0.05, 0.1]])
    truth = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    found = fit_label_thresholds(probabilities, truth)
    assert found[0] == pytest.approx(0.65)
    assert found[1] == pytest.approx(0.15)
    assert ((probabilities >= found) == truth)[:, :2].all()
    assert found[2] == 0.5


@pytest.mark.parametrize("key", ["decision.precision=0.95", "trainer.loss=focal", "trainer.sampling=balanced", "model=tfidf"])
def test_what_has_no_meaning_for_several_labels_is_refused_before_anything_is_read(key: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is for data\.task=single_label"):
        run(["data.task=multi_label", f"out={tmp_path}", key])


def test_a_run_s_result_is_json(several_run: dict[str, Any]) -> None:
    assert json.loads(json.dumps(several_run))["test"]["n"] == several_run["test"]["n"]
