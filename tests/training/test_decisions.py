from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from benchmarks.decisions import promise as resampling

from pigeonhole.bundle import OutOfScopeRule, open_bundle
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import OutOfScope, load_dataset
from pigeonhole.dataset.read import Row
from pigeonhole.decision import softmax
from pigeonhole.evaluation.decisions import auroc, strange
from pigeonhole.metrics import Floats, Ids
from pigeonhole.training.calibration import calibrate
from pigeonhole.training.config import DecisionConfig
from pigeonhole.training.decisions import (
    _Precisions,
    as_neighbours,
    choose_neighbours,
    fit_out_of_scope,
    fit_rules,
    fit_thresholds,
    rows_to_show,
)


def drawn(n: int, seed: int, flattery: float = 1.0) -> tuple[Floats, Ids]:
    """Probabilities of four labels and labels drawn by them; with more `flattery` the scores promise too much."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(n, 4)) * np.array([4.0, 3.0, 2.0, 1.0])
    true = np.array([random.choice(4, p=row) for row in softmax(logits)])
    return softmax(logits * flattery), true


def answer(logits: Floats, embedding: Floats) -> Prediction:
    return Prediction(
        label="a",
        label_id=0,
        labels=("a",),
        score=1.0,
        decision="accept",
        probabilities=softmax(logits),
        ranked=(-logits).argsort(kind="stable"),
        logits=logits.astype(np.float32),
        embedding=embedding.astype(np.float32),
        n_tokens=3,
        unknown_tokens=0,
        truncated=False,
    )


@pytest.mark.parametrize("flattery", [1.0, 1.3])
def test_the_precision_promised_holds_on_other_rows_nine_times_in_ten(flattery: float) -> None:
    held, coverage = 0, []
    fresh, truth = drawn(20_000, seed=1_000, flattery=flattery)
    predicted, scores = fresh.argmax(axis=1), fresh.max(axis=1)
    for seed in range(20):
        promise = fit_thresholds(*drawn(600, seed, flattery), 0.9)
        accepted = scores >= promise.thresholds[predicted]
        held += not accepted.any() or (predicted == truth)[accepted].mean() >= 0.9
        coverage.append(accepted.mean())
    assert held >= 16  # of 20: with a risk of 0.1, fewer come once in 25 draws of this test
    assert np.mean(coverage) > 0.2


def test_the_benchmark_tells_of_each_target_what_it_found(tiny_run: dict[str, Any]) -> None:
    found = resampling.run([f"bundle={tiny_run['bundle']}", "targets=0.5,0.99", "repeats=3"])
    assert found is not None
    assert {target: part["promised_in"] for target, part in found["targets"].items()} == {"0.5": 1, "0.99": 0}
    assert found["targets"]["0.5"]["precision"]["mean"] >= 0.5


def test_a_label_that_promises_too_much_gets_a_higher_threshold_than_the_others() -> None:
    random = np.random.default_rng(0)
    scores = random.uniform(0.5, 1, 4_000)
    label_ids = random.integers(0, 2, 4_000)
    probabilities = np.where(np.arange(2) == label_ids[:, None], scores[:, None], 1 - scores[:, None])
    right = random.uniform(size=4_000) < np.where(label_ids == 0, scores**0.2, scores)  # label 0 is better than it says
    promise = fit_thresholds(probabilities, np.where(right, label_ids, 1 - label_ids), 0.9)
    assert promise.kept
    assert promise.thresholds[0] < promise.thresholds[1] - 0.1


def test_the_precision_that_the_configuration_names_is_the_one_promised(tiny_data: Path, sealed_bundle: Path) -> None:
    probabilities, true = drawn(600, 0)
    inside = [answer(np.log(row), np.ones(4)) for row in probabilities]
    manifest = msgspec.structs.replace(open_bundle(str(sealed_bundle)).manifest, labels=tuple("abcd"))
    dataset = load_dataset(DataConfig(path=str(tiny_data), trigger_words="report"))
    rows = [Row(f"text {number}", "abcd"[label], number) for number, label in enumerate(true)]
    dataset = replace(dataset, split=replace(dataset.split, validation=rows))
    classifier = Classifier.open(open_bundle(str(sealed_bundle)))
    rules = fit_rules(classifier, inside, manifest, dataset, DecisionConfig(precision=0.9), seed=0)
    held_out = calibrate(np.stack([found.logits for found in inside]), true, 0).held_out
    thresholds = {target: fit_thresholds(held_out, true, target).thresholds.tolist() for target in (0.5, 0.9)}
    assert rules.promise is not None
    assert rules.promise.thresholds.tolist() == thresholds[0.9] != thresholds[0.5]
    seeded = fit_rules(classifier, inside, manifest, dataset, DecisionConfig(precision=0.9), seed=3)
    other = fit_thresholds(calibrate(np.stack([found.logits for found in inside]), true, 3).held_out, true, 0.9, 3)
    assert seeded.promise is not None
    assert seeded.promise.thresholds.tolist() == other.thresholds.tolist()


def test_neighbours_are_training_rows_and_the_share_kept_is_the_one_that_is_named(tiny_data: Path, sealed_bundle: Path) -> None:
    classifier = Classifier.open(open_bundle(str(sealed_bundle)))
    dataset = load_dataset(DataConfig(path=str(tiny_data), trigger_words="report", val=0.2, test=0.2))
    train, validation = ([row.text for row in rows] for rows in (dataset.split.train, dataset.split.validation))
    inside, neighbours = classifier.predict(validation), as_neighbours(classifier.predict(train))
    outside = ["the moon sings at night", "my aunt in Kiel won the cup", "an old ship needs more salt"]
    dataset = replace(dataset, out_of_scope=OutOfScope(outside, ["never fitted"]))
    for kept in (0.6, 0.9):
        rules = fit_rules(classifier, inside, classifier.manifest, dataset, DecisionConfig(kept=kept), seed=0)
        assert rules.scope == fit_out_of_scope(inside, classifier.predict(outside), neighbours, kept)


@pytest.mark.parametrize("seed", [6, 16])
def test_the_first_level_that_fails_ends_the_search_though_a_lower_one_would_pass_by_luck(seed: int) -> None:
    assert not fit_thresholds(*drawn(200, seed), 0.8).kept


def test_where_no_threshold_keeps_the_promise_nothing_is_accepted() -> None:
    probabilities, true = drawn(40, 0)
    promise = fit_thresholds(probabilities, true, 0.999)
    assert (promise.kept, promise.accepted) == (False, 0)
    assert promise.thresholds.tolist() == [1, 1, 1, 1]


def test_the_rule_that_tells_more_texts_apart_is_chosen_and_keeps_its_share_in_scope() -> None:
    random = np.random.default_rng(0)
    known = np.eye(3, 8)

    def answers(n: int, rule: OutOfScopeRule, strange: bool) -> list[Prediction]:
        found = []
        for _ in range(n):
            embedding = known[random.integers(3)] + random.normal(size=8) * (1.0 if strange and rule == "neighbour" else 0.1)
            logits = random.normal(size=3) + (0 if strange and rule == "max_logit" else 5)
            found.append(answer(logits, embedding))
        return found

    neighbours = as_neighbours([answer(np.zeros(3), row) for row in known])
    for rule in ("neighbour", "max_logit"):
        inside, outside = answers(400, rule, strange=False), answers(100, rule, strange=True)
        scope = fit_out_of_scope(inside, outside, neighbours, kept=0.95)
        assert scope.rule.rule == rule
        assert scope.auroc[rule] > 0.95 > 0.7 > scope.auroc["max_logit" if rule == "neighbour" else "neighbour"]


def test_at_least_the_share_kept_stays_in_scope_where_the_rows_do_not_divide_by_it() -> None:
    """0.95 of 50 rows are 47.5."""
    random = np.random.default_rng(0)
    inside, outside = ([answer(random.normal(size=3) + high, np.ones(8)) for _ in range(50)] for high in (5, 0))
    neighbours = as_neighbours(inside[:1])
    scope = fit_out_of_scope(inside, outside, neighbours, kept=0.95)
    assert (strange("max_logit", inside, neighbours) <= scope.rule.limit).sum() == 48


def test_neighbours_are_compared_by_direction_alone() -> None:
    neighbours = as_neighbours([answer(np.zeros(3), length * np.eye(4)[place]) for place, length in enumerate((0.1, 1, 70))])
    assert neighbours.tolist() == np.eye(3, 4).tolist()


def test_a_label_with_few_rows_leans_on_all_of_them() -> None:
    """Label 1 was right in 12 of 12, label 0 in 420 of 600: (12 + 20 * 0.7) / 32 is 0.82."""
    label_ids = np.array([0] * 420 + [1] * 12 + [2] * 180)
    scores = np.full(len(label_ids), 0.8)
    predicted = np.where(label_ids == 2, 0, label_ids)
    found = _Precisions(scores, predicted == label_ids, predicted, 2).thresholds(0.9)
    assert found.tolist() == [1.0, 1.0]


def test_the_area_is_the_share_of_pairs_in_the_right_order_and_half_of_the_ties() -> None:
    inside, outside = np.array([0.1, 0.4, 0.4]), np.array([0.4, 0.9])
    pairs = [(o > i) + 0.5 * (o == i) for i in inside for o in outside]
    assert auroc(inside, outside) == pytest.approx(np.mean(pairs))


def test_neighbours_are_spread_over_the_labels() -> None:
    label_ids = np.repeat(np.arange(10), [500, 20, *[200] * 8])
    places = choose_neighbours(label_ids)
    assert np.bincount(label_ids[places]).tolist() == [102, 20, *[102] * 8]


@pytest.mark.parametrize(("n", "kept"), [(44, False), (45, True)])
def test_a_promise_needs_so_many_rows_of_the_other_half_that_luck_is_a_risk_of_a_tenth(n: int, kept: bool) -> None:
    """All are right: the lower Clopper-Pearson bound of n of n is 0.1 ** (1 / n), 0.9490 for 44 and 0.9501 for 45."""
    label_ids = np.arange(2 * n) % 2
    promise = fit_thresholds(np.where(np.eye(2)[label_ids] == 1, 0.9, 0.1), label_ids, 0.95)
    assert (promise.kept, promise.accepted) == (kept, n if kept else 0)
    assert rows_to_show(0.95) == 2 * 45
