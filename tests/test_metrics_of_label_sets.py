"""Figures of texts with several labels, against scikit-learn and examples made by hand."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, precision_recall_fscore_support

from pigeonhole.metrics import (
    accuracy,
    bootstrap_calibration_error,
    bootstrap_difference,
    bootstrap_macro_f1,
    bootstrap_micro_f1,
    brier_score,
    expected_calibration_error,
    macro_f1,
    macro_f1_of_true_labels,
    mean_average_precision,
    micro_f1,
    negative_log_likelihood,
    per_class,
    predict,
    score_metrics,
)

LABELS = ("a", "b", "c", "d")
THRESHOLDS = np.array([0.5, 0.4, 0.6, 0.5])


def drawn(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """True labels (n, 4) and probabilities that are calibrated by construction; label d never occurs."""
    random = np.random.default_rng(seed)
    probabilities = random.beta(0.6, 1.2, size=(n, 4))
    true = (random.random((n, 4)) < probabilities).astype(np.int64)
    true[:, 3] = 0
    return true, probabilities


def test_figures_are_those_of_scikit_learn() -> None:
    true, probabilities = drawn()
    predicted = predict(probabilities, THRESHOLDS)
    assert accuracy(true, predicted) == pytest.approx(accuracy_score(true, predicted))
    assert micro_f1(true, predicted) == pytest.approx(f1_score(true, predicted, average="micro"))
    assert macro_f1(true, predicted) == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))
    expected = f1_score(true[:, :3], predicted[:, :3], average="macro")
    assert macro_f1_of_true_labels(true, predicted) == pytest.approx(expected)
    expected = average_precision_score(true[:, :3], probabilities[:, :3], average="macro")
    assert mean_average_precision(true, probabilities) == pytest.approx(expected)
    tied = np.round(probabilities, 1)
    assert mean_average_precision(true, tied) == pytest.approx(average_precision_score(true[:, :3], tied[:, :3]))
    found = per_class(true, predicted, LABELS)
    precision, recall, f1, support = precision_recall_fscore_support(true, predicted, zero_division=0)
    for place, label in enumerate(LABELS):
        figures = [found[label][name] for name in ("precision", "recall", "f1", "support")]
        assert figures == pytest.approx([precision[place], recall[place], f1[place], support[place]])


def test_losses_are_sums_over_the_labels_of_a_row() -> None:
    true, probabilities = np.array([[1, 0], [1, 1]]), np.array([[0.8, 0.1], [0.5, 1.0]])
    assert negative_log_likelihood(probabilities, true) == pytest.approx(-np.log(0.8 * 0.9 * 0.5) / 2)
    assert brier_score(probabilities, true) == pytest.approx((0.2**2 + 0.1**2 + 0.5**2) / 2)


def test_each_label_of_each_row_is_a_statement_whose_sureness_is_measured() -> None:
    true = np.array([[1, 0], [0, 0]])
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1]])
    assert expected_calibration_error(probabilities, true) == pytest.approx((0.4 + 0.1) / 2)
    calibrated = expected_calibration_error(*reversed(drawn(4000)))
    true, probabilities = drawn(4000)
    assert expected_calibration_error(probabilities[:, :3], true[:, :3]) < 0.02 < calibrated


def test_intervals_hold_the_true_value_about_as_often_as_they_say() -> None:
    everything, probabilities = drawn(20_000, seed=1)
    predicted = predict(probabilities, THRESHOLDS)
    truth = macro_f1(everything, predicted), micro_f1(everything, predicted)
    held = np.zeros(2)
    for start in range(0, 20_000, 400):
        rows = slice(start, start + 400)
        found = [made(everything[rows], predicted[rows], resamples=400) for made in (bootstrap_macro_f1, bootstrap_micro_f1)]
        held += [interval.low <= value <= interval.high for interval, value in zip(found, truth, strict=True)]
    assert (held >= 44).all()  # of 50; 47.5 are expected


def test_the_calibration_error_s_interval_moves_rows_not_statements() -> None:
    true, probabilities = drawn(200)
    doubled = bootstrap_calibration_error(np.hstack([probabilities] * 2), np.hstack([true] * 2))
    single = bootstrap_calibration_error(probabilities, true)
    assert (doubled.low, doubled.high) == pytest.approx((single.low, single.high))


def test_a_difference_is_paired() -> None:
    true, probabilities = drawn()
    predicted = predict(probabilities, THRESHOLDS)
    same = bootstrap_difference(true, predicted, predicted)
    assert (same.estimate, same.low, same.high) == (0, 0, 0)
    worse = bootstrap_difference(true, np.zeros_like(true), predicted)
    assert worse.high < 0


def test_a_report_has_the_same_keys_and_two_more() -> None:
    true, probabilities = drawn()
    found = score_metrics(true, probabilities, LABELS, thresholds=THRESHOLDS)
    single = score_metrics(true[:, 0], np.stack([1 - probabilities[:, 0], probabilities[:, 0]], axis=1), ("a", "b"))
    assert found.keys() - single.keys() == {"micro_f1", "mean_average_precision"}
    assert found["intervals"].keys() == {"accuracy", "macro_f1", "ece", "micro_f1", "mean_average_precision"}
    assert all(low <= found[name] <= high for name, (low, high) in found["intervals"].items())
    assert found == score_metrics(true, probabilities, LABELS, thresholds=THRESHOLDS)


def test_rows_without_any_label_and_answers_without_any_are_right_and_have_no_f1() -> None:
    nothing = np.zeros((5, 2), np.int64)
    assert (accuracy(nothing, nothing), micro_f1(nothing, nothing), macro_f1(nothing, nothing)) == (1.0, 0.0, 0.0)
