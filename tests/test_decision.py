"""What is out of scope, and per-label calibration, through a sealed bundle whose every word's weight is known."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import pytest
import scipy.special
from tests.keyword_bundle import keyword_bundle

from pigeonhole.bundle import NEIGHBOURS, Bundle, OutOfScope, VectorScaling, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.decision import Judge, sigmoid, softmax, strangeness
from pigeonhole.errors import BundleError

# The bundle's embedding is its logits.
EMBEDDINGS = {"account": [1.0, 0.0, 0.0], "billing": [0.0, 1.0, 0.0], "delivery": [0.0, 0.0, 1.0]}


def with_rule(folder: Path, limit: float, rows: list[list[float]] | None = None) -> Bundle:
    """`rows`: the neighbours; None: by max_logit."""
    bundle = keyword_bundle(folder, "v1")
    if rows is not None:
        np.save(folder / NEIGHBOURS, np.array(rows, np.float32))
    rule = OutOfScope("max_logit" if rows is None else "neighbour", limit)
    seal(folder, msgspec.structs.replace(bundle.manifest, out_of_scope=rule))
    return open_bundle(str(folder))


def decisions(bundle: Bundle, *texts: str) -> list[str]:
    return [found.decision for found in Classifier.open(bundle).predict(texts)]


def test_a_text_far_from_all_neighbours_is_out_of_scope(tmp_path: Path) -> None:
    near_two = with_rule(tmp_path / "bundle", 0.2, [EMBEDDINGS["account"], EMBEDDINGS["billing"]])
    assert decisions(near_two, "login", "invoice charge", "parcel") == ["accept", "accept", "out_of_scope"]
    assert decisions(near_two, "invoice parcel") == ["out_of_scope"]  # cosine 0.71 to the nearest
    assert decisions(near_two, "zebra") == ["out_of_scope"]  # an embedding of zeros is near nothing


def test_a_text_whose_largest_logit_is_low_is_out_of_scope(tmp_path: Path) -> None:
    assert decisions(with_rule(tmp_path / "bundle", -3.5), "login", "login password", "zebra") == [
        "out_of_scope",
        "accept",
        "out_of_scope",
    ]


@pytest.mark.parametrize("c", [2, 3, 8, 9, 77, 129, 1000])
def test_a_row_has_the_same_bits_alone_and_beside_others(c: int) -> None:
    rows = np.random.default_rng(c).normal(size=(67, c)) * 8
    for to_probabilities in (softmax, sigmoid):
        together = to_probabilities(rows)
        assert all(np.array_equal(to_probabilities(row[None])[0], found) for row, found in zip(rows, together, strict=True))
        assert all(np.array_equal(to_probabilities(row), found) for row, found in zip(rows, together, strict=True))


def test_a_strange_text_gets_the_same_answer_alone_and_in_any_company(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    words = ["invoice", "parcel", "login", "zebra", "charge"]
    texts = [" ".join(random.choice(words, size=size)) for size in random.integers(1, 9, 60)]
    distances = []
    for limit in (0.0, 1e-4, 1e-3):
        classifier = Classifier.open(with_rule(tmp_path / f"{limit}", limit, rows.tolist()))
        together = [found.decision for found in classifier.predict(texts)]
        assert together == [classifier.predict([text])[0].decision for text in texts]
        distances.append(together.count("out_of_scope"))
    assert distances[0] > distances[1] > distances[2]


def test_each_label_is_calibrated_by_its_own_scale_and_bias(tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1")
    vector = VectorScaling((1.0, 0.5, 2.0), (0.0, 1.0, -4.0))
    seal(bundle.folder, msgspec.structs.replace(bundle.manifest, vector_scaling=vector))
    found = Classifier.open(open_bundle(str(bundle.folder))).predict(["parcel invoice login"])[0]
    assert found.probabilities == pytest.approx(softmax(np.array([3.0, 2.5, 2.0])))
    assert found.label == "account"


def test_a_calibration_that_does_not_fit_the_labels_is_refused(tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1")
    with pytest.raises(BundleError, match="vector_scaling has to have a scale and a bias for each of the 3 labels"):
        seal(bundle.folder, msgspec.structs.replace(bundle.manifest, vector_scaling=VectorScaling((1.0,), (0.0,))))


def test_a_rule_by_neighbours_without_them_is_refused(tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1")
    with pytest.raises(BundleError, match=r"out_of_scope goes by neighbours, but neighbours\.npy is not listed"):
        seal(bundle.folder, msgspec.structs.replace(bundle.manifest, out_of_scope=OutOfScope("neighbour", 0.5)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.array([{"code": 1}], dtype=object), r"neighbours\.npy cannot be read: Object arrays"),
        (np.array([1.0, 2.0], np.float32), "is no matrix"),
        (np.eye(3), "is no matrix"),
        (np.zeros((0, 3), np.float32), "is no matrix"),
        (np.full((2, 3), np.nan, np.float32), "is no matrix of finite"),
        (np.eye(2, dtype=np.float32), "has 2 numbers a row, the model's embeddings have 3"),
    ],
)
def test_neighbours_that_are_no_neighbours_are_refused(tmp_path: Path, content: np.ndarray, message: str) -> None:
    bundle = with_rule(tmp_path / "bundle", 0.5, list(EMBEDDINGS.values()))
    np.save(bundle.path(NEIGHBOURS), content, allow_pickle=True)
    seal(bundle.folder, bundle.manifest)
    with pytest.raises(BundleError, match=message):
        Classifier.open(open_bundle(str(bundle.folder)))


def test_a_score_and_a_probability_that_just_reach_their_limits_are_enough(tmp_path: Path) -> None:
    single = keyword_bundle(tmp_path / "single", "v1").manifest
    none = np.zeros(len(single.labels), np.float32)
    limits = dict.fromkeys(single.labels, 0.25)
    assert Judge(msgspec.structs.replace(single, thresholds=limits)).decide(0, 0.25, none, none) == "accept"
    assert Judge(msgspec.structs.replace(single, thresholds=limits)).decide(0, 0.2499, none, none) == "review"
    several = Judge(msgspec.structs.replace(single, thresholds=limits, task="multi_label", accept_score=0.5))
    assert several.given(0, np.full(len(single.labels), 0.25))[0] == single.labels
    assert several.given(0, np.full(len(single.labels), 0.2499))[0] == ()
    assert several.decide(0, 0.5, none, none) == "accept"
    assert several.decide(0, 0.4999, none, none) == "review"
    scoped = Judge(msgspec.structs.replace(single, out_of_scope=OutOfScope("max_logit", -3.0)))
    assert scoped.decide(0, 1.0, np.array([3, 0, 0], np.float32), none) == "accept"


@pytest.mark.parametrize(("task", "expected"), [("single_label", scipy.special.softmax), ("multi_label", scipy.special.expit)])
def test_logits_over_the_temperature_become_probabilities_and_large_ones_do_not_overflow(
    tmp_path: Path, task: Literal["single_label", "multi_label"], expected: Callable[..., np.ndarray]
) -> None:
    manifest = msgspec.structs.replace(keyword_bundle(tmp_path / "bundle", "v1").manifest, task=task, temperature=2.0)
    along = {"axis": -1} if task == "single_label" else {}
    for logits in ([[1.0, 2.0, -3.0], [0.5, 0.0, 0.25]], [[1e4, 0.0, -1e4], [-1e4, -1e4, -1e4]]):
        found = Judge(manifest).probabilities(np.array(logits, np.float32))
        np.testing.assert_allclose(found, expected(np.array(logits) / 2, **along), rtol=1e-12)


def test_several_labels_are_all_right_as_often_as_each_is_and_no_other_is_missing(tmp_path: Path) -> None:
    single = keyword_bundle(tmp_path / "bundle", "v1").manifest
    several = Judge(msgspec.structs.replace(single, thresholds=dict.fromkeys(single.labels, 0.5), task="multi_label"))
    labels, score = several.given(0, np.array([0.9, 0.2, 0.6]))
    assert labels == (single.labels[0], single.labels[2])
    assert score == pytest.approx(0.9 * 0.8 * 0.6)


def test_how_strange_a_text_is_does_not_hang_on_the_length_of_its_embedding() -> None:
    neighbours = np.array([[1.0, 0.0], [0.0, 1.0]], np.float32)
    for length in (0.5, 4.0):
        found = strangeness("neighbour", np.zeros(2, np.float32), np.array([0.6, 0.8], np.float32) * length, neighbours)
        assert found == pytest.approx(0.2)
