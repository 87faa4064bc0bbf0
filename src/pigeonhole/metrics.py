"""The arithmetic of classification: scores, calibration errors and seeded confidence intervals, over arrays alone.

`true_ids` and `predicted_ids` are (n,) integers below c, `probabilities` is (n, c) with rows that sum to 1. Nothing here knows
texts, models or files; the same input and seed give the same figures to the last bit on the same NumPy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

RESAMPLES = 2_000  # the 2.5 % point then rests on 50 resamples
CONFIDENCE_BINS = 15  # Guo et al. 2017, the usual choice, so that figures compare with the literature
BLOCK = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def predict(probabilities: Floats) -> Ids:
    """The label id of the largest probability, the first where several tie."""
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def accuracy(true_ids: Ids, predicted_ids: Ids) -> float:
    return float(np.mean(true_ids == predicted_ids))


def macro_f1(true_ids: Ids, predicted_ids: Ids) -> float:
    """The mean F1 of the labels that occur among the true or the predicted ones, as scikit-learn has it."""
    return float(_macro(_class_counts(true_ids, predicted_ids, _c(true_ids, predicted_ids))))


def macro_f1_of_true_labels(true_ids: Ids, predicted_ids: Ids) -> float:
    """The mean F1 of the labels that occur among the true ones.

    What models with different labels are compared by: a stray answer with a label that the rows do not have is one mistake here,
    where `macro_f1` counts one more label, with F1 0.
    """
    return float(_macro_of_true(_class_counts(true_ids, predicted_ids, _c(true_ids, predicted_ids))))


def confusion_matrix(true_ids: Ids, predicted_ids: Ids, c: int) -> Ids:
    """(c, c) counts: row the true label, column the predicted one."""
    return np.bincount(true_ids * c + predicted_ids, minlength=c * c).reshape(c, c).astype(np.int64)


def per_class(true_ids: Ids, predicted_ids: Ids, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Precision, recall, F1, their intervals and the support of each label; a figure without a denominator is 0 with [0, 1]."""
    counts = _class_counts(true_ids, predicted_ids, len(labels))
    precision, recall, f1 = _ratio(counts.hits, counts.predicted), _ratio(counts.hits, counts.support), _f1(counts)
    return {
        label: {
            "precision": float(precision[i]),
            "recall": float(recall[i]),
            "f1": float(f1[i]),
            "support": int(counts.support[i]),
            "intervals": _class_intervals(counts, i),
        }
        for i, label in enumerate(labels)
    }


@dataclass(frozen=True)
class Reliability:
    """Rows sorted into equal-width bins of confidence: (bins,) each; accuracy and confidence are 0 in an empty bin."""

    edges: Floats  # (bins + 1,)
    counts: Ids
    accuracy: Floats
    confidence: Floats


def reliability(probabilities: Floats, true_ids: Ids, bins: int = CONFIDENCE_BINS) -> Reliability:
    """How often the predicted label is right, bin by bin of its probability; a bin holds its upper edge, not its lower one."""
    correct, confidence, bin_ids = _confidence(probabilities, true_ids, bins)
    counts = np.bincount(bin_ids, minlength=bins).astype(np.int64)
    right = np.bincount(bin_ids, weights=correct, minlength=bins)
    sure = np.bincount(bin_ids, weights=confidence, minlength=bins)
    return Reliability(np.linspace(0, 1, bins + 1), counts, _ratio(right, counts), _ratio(sure, counts))


def expected_calibration_error(probabilities: Floats, true_ids: Ids, bins: int = CONFIDENCE_BINS) -> float:
    """Mean gap between confidence and accuracy, weighted by the rows of each bin (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, true_ids, bins)
    return float(np.sum(found.counts * np.abs(found.accuracy - found.confidence)) / len(true_ids))


def negative_log_likelihood(probabilities: Floats, true_ids: Ids) -> float:
    """Mean of -ln p(true label), in nats; 0 counts as the smallest positive float, so that the mean stays finite."""
    chosen = np.take_along_axis(probabilities, true_ids[:, None], axis=1)
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).tiny))))


def brier_score(probabilities: Floats, true_ids: Ids) -> float:
    """Mean over rows of the squared distance between probabilities and the one-hot truth, 0 to 2 (Brier 1950, eq. 2)."""
    chosen = np.take_along_axis(probabilities, true_ids[:, None], axis=1)[:, 0]
    return float(np.mean(np.sum(probabilities**2, axis=1) - 2 * chosen + 1))  # |p - e|² = |p|² - 2 p·e + 1


def wilson_interval(successes: float, trials: float) -> Interval:
    """The 95 % score interval of a proportion (Wilson 1927); it keeps to [0, 1] and holds for few trials. 0 of 0 is [0, 1].

    Weighed trials may be no whole number.
    """
    assert 0 <= successes <= trials
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    z2 = 1.959963984540054**2
    share = successes / trials
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = np.sqrt(z2 * (share * (1 - share) + z2 / (4 * trials)) / trials) / (1 + z2 / trials)
    low = 0.0 if successes == 0 else float(middle - half)
    high = 1.0 if successes == trials else float(middle + half)
    return Interval(share, low, high)


def wilson_difference(first: Interval, second: Interval) -> Interval:
    """First less second, where both are Wilson's, of independent trials (Newcombe 1998, method 10)."""
    estimate = first.estimate - second.estimate
    below = np.hypot(first.estimate - first.low, second.high - second.estimate)
    above = np.hypot(first.high - first.estimate, second.estimate - second.low)
    return Interval(estimate, estimate - float(below), estimate + float(above))


def f1_interval(hits: int, support: int, predicted: int) -> Interval:
    """The 95 % interval of one label's F1, which is 2j / (1 + j) for j = hits / rows that are or were called so (Jaccard).

    j is a proportion, so Wilson's interval carries over, and stays honest where a bootstrap of a dozen right answers says [1, 1].
    """
    share = wilson_interval(hits, support + predicted - hits)
    return Interval(*(2 * j / (1 + j) for j in (share.estimate, share.low, share.high)))


def bootstrap_macro_f1(true_ids: Ids, predicted_ids: Ids, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Resamples whole rows; a faultless prediction leaves nothing to resample and gets the interval of its accuracy."""
    if (true_ids == predicted_ids).all():
        return wilson_interval(len(true_ids), len(true_ids))
    drawn = [_macro(counts) for (counts,) in _resampled(true_ids, [predicted_ids], seed, resamples)]
    return _shifted_interval(macro_f1(true_ids, predicted_ids), np.concatenate(drawn))


def bootstrap_calibration_error(
    probabilities: Floats, true_ids: Ids, bins: int = CONFIDENCE_BINS, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Resamples rows: unlike F1, the error hangs on each row's own confidence."""
    correct, confidence, bin_ids = _confidence(probabilities, true_ids, bins)
    gaps, n = correct - confidence, len(true_ids)
    random = np.random.default_rng(seed)
    drawn = []
    for size in _blocks(resamples, n):
        rows = random.integers(0, n, size=(size, n))
        places = bin_ids[rows] + bins * np.arange(size)[:, None]
        sums = np.bincount(places.ravel(), weights=gaps[rows].ravel(), minlength=size * bins).reshape(size, bins)
        drawn.append(np.abs(sums).sum(axis=1) / n)
    estimate = expected_calibration_error(probabilities, true_ids, bins)
    return _shifted_interval(estimate, np.concatenate(drawn))


def bootstrap_difference(true_ids: Ids, first_ids: Ids, second_ids: Ids, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Macro-F1 (of the true labels) of the first predictions less that of the second: paired, both read from one resample.

    The luck of the rows cancels out, and the interval is as narrow as the predictions are alike (Berg-Kirkpatrick et al. 2012).
    """
    estimate = macro_f1_of_true_labels(true_ids, first_ids) - macro_f1_of_true_labels(true_ids, second_ids)
    drawn = [
        _macro_of_true(first) - _macro_of_true(second)
        for first, second in _resampled(true_ids, [first_ids, second_ids], seed, resamples)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.025, 0.975])  # not shifted: a bias shared by both cancels out
    return Interval(estimate, float(low), float(high))


def bootstrap_share_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The share of true in the first less that in the second, (n,) each: paired, as in `bootstrap_difference`."""
    steps = first.astype(np.int64) - second.astype(np.int64)
    counts = np.bincount(steps + 1, minlength=3)  # lost, the same, won
    drawn = np.random.default_rng(seed).multinomial(len(steps), counts / len(steps), size=resamples)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(steps), [0.025, 0.975])
    return Interval(float(steps.mean()), float(low), float(high))


def median_interval(values: Floats) -> Interval:
    """The median and its 95 % interval by order statistics (binomial, normal approximation); exact enough from 20 values on."""
    ordered, n = np.sort(values), len(values)
    half = 1.959963984540054 * np.sqrt(n) / 2
    low, high = max(0, int(np.floor(n / 2 - half))), min(n - 1, int(np.ceil(n / 2 + half)))
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))


def score_metrics(true_ids: Ids, probabilities: Floats, labels: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Everything that a report says of one model on one labelled set, ready for JSON; intervals are 95 %."""
    n, c = probabilities.shape
    assert n == len(true_ids) > 0
    assert c == len(labels)
    assert np.isfinite(probabilities).all()
    predicted_ids = predict(probabilities)
    intervals = {
        "accuracy": wilson_interval(int(np.sum(true_ids == predicted_ids)), n),
        "macro_f1": bootstrap_macro_f1(true_ids, predicted_ids, seed),
        "ece": bootstrap_calibration_error(probabilities, true_ids, seed=seed),
    }
    return {
        **{name: interval.estimate for name, interval in intervals.items()},
        "negative_log_likelihood": negative_log_likelihood(probabilities, true_ids),
        "brier": brier_score(probabilities, true_ids),
        "n": n,
        "intervals": {name: [interval.low, interval.high] for name, interval in intervals.items()},
        "per_class": per_class(true_ids, predicted_ids, labels),
    }


def _class_intervals(counts: "_ClassCounts", i: int) -> dict[str, list[float]]:
    hits, support, predicted = (int(found[i]) for found in (counts.hits, counts.support, counts.predicted))
    intervals = {
        "precision": wilson_interval(hits, predicted),
        "recall": wilson_interval(hits, support),
        "f1": f1_interval(hits, support, predicted),
    }
    return {name: [interval.low, interval.high] for name, interval in intervals.items()}


@dataclass(frozen=True)
class _ClassCounts:
    """What precision, recall and F1 need of each label: (c,), or (resamples, c)."""

    hits: NDArray[Any]
    support: NDArray[Any]
    predicted: NDArray[Any]


def _class_counts(true_ids: Ids, predicted_ids: Ids, c: int) -> _ClassCounts:
    return _ClassCounts(
        hits=np.bincount(true_ids[true_ids == predicted_ids], minlength=c),
        support=np.bincount(true_ids, minlength=c),
        predicted=np.bincount(predicted_ids, minlength=c),
    )


def _f1(counts: _ClassCounts) -> Floats:
    return _ratio(2 * counts.hits, counts.support + counts.predicted)


def _macro(counts: _ClassCounts) -> Floats:
    """() or (resamples,): the mean over the labels that occur."""
    occurring = np.sum(counts.support + counts.predicted > 0, axis=-1)
    return np.asarray(_f1(counts).sum(axis=-1) / occurring)


def _macro_of_true(counts: _ClassCounts) -> Floats:
    occurring = counts.support > 0
    return np.asarray(np.sum(_f1(counts) * occurring, axis=-1) / np.sum(occurring, axis=-1))


def _c(*ids: Ids) -> int:
    return int(np.max(ids)) + 1


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0))


def _resampled(true_ids: Ids, predictions: Sequence[Ids], seed: int, resamples: int) -> list[list[_ClassCounts]]:
    """Blocks of resamples; each block holds, for each of the predictions, the counts of the same resampled rows.

    Drawing n rows with replacement is drawing how often each distinct outcome (true id, predicted ids) comes up: a multinomial
    over some hundred outcomes instead of a gather of n rows.
    """
    outcomes, rows = np.unique(np.stack([true_ids, *predictions]), axis=1, return_counts=True)  # (1 + predictions, k), (k,)
    c = int(outcomes.max()) + 1
    n, k = len(true_ids), len(rows)
    random = np.random.default_rng(seed)
    blocks = []
    for size in _blocks(resamples, k + c):
        drawn = random.multinomial(n, rows / n, size=size)  # (size, k)
        support = _sum_by_id(drawn, outcomes[0], c)
        blocks.append([_predicted_counts(drawn, outcomes[0], found, support) for found in outcomes[1:]])
    return blocks


def _predicted_counts(drawn: Ids, true_ids: Ids, predicted_ids: Ids, support: Ids) -> _ClassCounts:
    hit = true_ids == predicted_ids
    c = support.shape[1]
    return _ClassCounts(_sum_by_id(drawn[:, hit], true_ids[hit], c), support, _sum_by_id(drawn, predicted_ids, c))


def _sum_by_id(drawn: Ids, ids: Ids, c: int) -> Ids:
    """(resamples, k) and (k,) -> (resamples, c): the columns of each id added up."""
    order = np.argsort(ids, kind="stable")
    found, starts = np.unique(ids[order], return_index=True)
    sums = np.zeros((len(drawn), c), np.int64)
    sums[:, found] = np.add.reduceat(drawn[:, order], starts, axis=1)
    return sums


def _blocks(resamples: int, width: int) -> list[int]:
    """Sizes that add up to `resamples`, each small enough to hold `width` numbers per resample."""
    size = max(1, BLOCK // width)
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _confidence(probabilities: Floats, true_ids: Ids, bins: int) -> tuple[Floats, Floats, Ids]:
    confidence = probabilities.max(axis=1)
    correct = (predict(probabilities) == true_ids).astype(np.float64)
    bin_ids = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return correct, confidence, bin_ids.astype(np.int64)


def _shifted_interval(estimate: float, drawn: Floats) -> Interval:
    """The percentile interval (Efron 1979), shifted back by the bootstrap's own bias.

    Resampling thins out small labels, which lowers macro-F1, and adds noise to absolute gaps, which raises the calibration error.
    Over 400 simulated sets of 1,000 rows and 77 labels the plain interval of macro-F1 held the true value in 90.5 %, this one
    in 95 %.
    """
    low, high = np.clip(np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - estimate), 0, 1)
    return Interval(estimate, float(low), float(high))
