"""A run with texts that belong to no label, and a precision that is promised: from the keys to the sealed bundle's decisions."""

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import train_arguments, write_rows

from pigeonhole.bundle import NEIGHBOURS, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import read_out_of_scope
from pigeonhole.evaluation.decisions import auroc, strange
from pigeonhole.evaluation.labelled import read_own_rows
from pigeonhole.training.train import run

STRANGERS = [
    f"{who} {what}"
    for who in ("the neighbour's cat", "our choir", "an old ship", "my aunt in Kiel", "the moon")
    for what in ("sings at night", "was painted green", "won the cup in 1974", "needs more salt", "sleeps under a bridge")
]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("strangers") / "strangers.csv", [(text, "none") for text in STRANGERS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path, strangers: Path) -> dict[str, Any]:
    arguments = train_arguments(tmp_path_factory.mktemp("rules"), tiny_data)
    return run(
        [
            *arguments,
            f"data.out_of_scope_path={strangers}",
            "decision.precision=0.8",
            "decision.kept=0.9",
            "data.slices=parcels=parcel",
        ]
    )


def test_the_rule_is_fitted_on_one_half_and_measured_on_the_other(trained: dict[str, Any], strangers: Path) -> None:
    found = trained["decisions"]["out_of_scope"]
    assert set(found["fitted_auroc"]) == {"neighbour", "max_logit"}
    assert found["fitted_auroc"][found["rule"]] == max(found["fitted_auroc"].values())
    halves = read_out_of_scope(DataConfig(path="other.csv", out_of_scope_path=str(strangers)))
    assert sorted([*halves.fitted, *halves.test]) == sorted(STRANGERS)
    assert found["test"]["n"] == len(halves.test) == 12
    classifier = Classifier.open(open_bundle(trained["bundle"]))
    said = [answer.decision for answer in classifier.predict(halves.test)]
    assert found["test"]["recall"]["share"] == said.count("out_of_scope") / 12
    validation = [row.text for row in read_own_rows(open_bundle(trained["bundle"]))[1].split.validation]
    inside, outside = (strange("max_logit", classifier.predict(texts), None) for texts in (validation, halves.fitted))
    assert found["fitted_auroc"]["max_logit"] == pytest.approx(auroc(inside, outside))


def test_the_bundle_carries_rule_thresholds_and_their_target(trained: dict[str, Any]) -> None:
    bundle = open_bundle(trained["bundle"])
    manifest = bundle.manifest
    assert manifest.out_of_scope is not None
    assert manifest.threshold_target is not None
    assert (manifest.threshold_target.metric, manifest.threshold_target.value) == ("precision", 0.8)
    assert bundle.path(NEIGHBOURS).exists() == (manifest.out_of_scope.rule == "neighbour")
    assert manifest.metrics["decisions"] == trained["decisions"]
    assert trained["decisions"]["fitted"]["kept"]


def test_a_run_without_such_texts_has_no_rule_and_says_so(tiny_run: dict[str, Any]) -> None:
    manifest = open_bundle(tiny_run["bundle"]).manifest
    assert manifest.out_of_scope is None
    assert manifest.threshold_target is None
    assert tiny_run["decisions"]["out_of_scope"] is None
    assert set(manifest.thresholds.values()) == {0.5}


def test_slices_and_behaviour_of_every_candidate_stand_in_its_bundle(trained: dict[str, Any]) -> None:
    metrics = open_bundle(trained["bundle"]).manifest.metrics
    assert {"1-5 words", "6-15 words", "parcels"} <= set(metrics["slices"])
    assert 0 < metrics["slices"]["parcels"]["n"] < 30
    assert {"upper case", "a typo", "politeness", "two texts of one label"} <= set(metrics["behaviour"])
    assert metrics["behaviour"]["upper case"]["passed"] == 1
