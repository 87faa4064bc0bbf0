"""The arithmetic of classification: scores, calibration errors and seeded confidence intervals, over arrays alone.

`true_ids` and `predicted_ids` are (n,) integers below c, `probabilities` is (n, c) with rows that sum to 1. Where a text may have
several labels, both ids are (n, c) instead, 1 where it has the label, and each column of `probabilities` stands by itself; a row
is then right where all of its labels are. Nothing here knows texts, models or files; the same input and seed give the same
figures to the last bit on the same NumPy.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Floats = NDArray[np.float64]

RESAMPLES = 2_000  # the 2.5 % point then rests on 50 resamples
PRECISION_RESAMPLES = 400  # of what has to be sorted each time
CONFIDENCE_BINS = 15  # Guo et al. 2017, the usual choice, so that figures compare with the literature
NORMAL_975 = 1.959963984540054  # 97.5 % of the normal distribution lies below
BLOCK = 4_000_000  # numbers held at once while resampling: 32 MB


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % confidence interval."""

    estimate: float
    low: float
    high: float


def predict(probabilities: Floats, thresholds: Floats | None = None) -> Ids:
    """The label id of the largest probability, the first where several tie; (n, c) where thresholds (c,) say what is given."""
    if thresholds is not None:
        return (probabilities >= thresholds).astype(np.int64)
    return np.asarray(probabilities.argmax(axis=1), np.int64)


def right(true_ids: Ids, predicted_ids: Ids) -> NDArray[np.bool_]:
    """(n,): which rows are right."""
    same = true_ids == predicted_ids
    return np.asarray(same.all(axis=1) if same.ndim == 2 else same)


def accuracy(true_ids: Ids, predicted_ids: Ids) -> float:
    """Of several labels a text: subset accuracy, the share of rows whose labels are all right and no other given."""
    return float(np.mean(right(true_ids, predicted_ids)))


def macro_f1(true_ids: Ids, predicted_ids: Ids) -> float:
    """The mean F1 of the labels that occur among the true or the predicted ones, as scikit-learn has it."""
    return float(_macro(_class_counts(true_ids, predicted_ids, _c(true_ids, predicted_ids))))


def macro_f1_of_true_labels(true_ids: Ids, predicted_ids: Ids) -> float:
    """The mean F1 of the labels that occur among the true ones.

    What models with different labels are compared by: a stray answer with a label that the rows do not have is one mistake here,
    where `macro_f1` counts one more label, with F1 0.
    """
    return float(_macro_of_true(_class_counts(true_ids, predicted_ids, _c(true_ids, predicted_ids))))


def micro_f1(true_ids: Ids, predicted_ids: Ids) -> float:
    """Of all labels of all rows together; ids (n, c)."""
    return float(_micro(_class_counts(true_ids, predicted_ids, true_ids.shape[1])))


def mean_average_precision(true_ids: Ids, probabilities: Floats) -> float:
    """The mean over the labels that occur of the average precision of the rows, ranked by the label's probability; ids (n, c).

    Sum of (recall_k - recall_k-1) * precision_k over the distinct probabilities, without interpolation, as scikit-learn has it.
    """
    occurring = np.flatnonzero(true_ids.any(axis=0))
    found = [_average_precision(true_ids[:, label], probabilities[:, label]) for label in occurring.tolist()]
    return float(np.mean(found)) if found else 0.0


def _average_precision(true: Ids, scores: Floats) -> float:
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    hits = np.cumsum(true[order])[last_of_ties]
    precision = hits / (np.flatnonzero(last_of_ties) + 1)
    return float(np.sum(np.diff(hits, prepend=0) * precision) / true.sum())


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
    """How often the predicted label is right, bin by bin of its probability; a bin holds its upper edge, not its lower one.

    Of several labels a text: how often a label is there, bin by bin of its probability, over all labels of all rows.
    """
    correct, confidence, bin_ids = _confidence(probabilities, true_ids, bins)
    counts = np.bincount(bin_ids, minlength=bins).astype(np.int64)
    right = np.bincount(bin_ids, weights=correct, minlength=bins)
    sure = np.bincount(bin_ids, weights=confidence, minlength=bins)
    return Reliability(np.linspace(0, 1, bins + 1), counts, _ratio(right, counts), _ratio(sure, counts))


def expected_calibration_error(probabilities: Floats, true_ids: Ids, bins: int = CONFIDENCE_BINS) -> float:
    """Mean gap between confidence and accuracy, weighted by the rows of each bin (Naeini et al. 2015; Guo et al. 2017, eq. 3)."""
    found = reliability(probabilities, true_ids, bins)
    return float(np.sum(found.counts * np.abs(found.accuracy - found.confidence)) / found.counts.sum())


def negative_log_likelihood(probabilities: Floats, true_ids: Ids) -> float:
    """Mean of -ln p(true label), in nats; 0 counts as the smallest positive float, so that the mean stays finite.

    Of several labels a text: the mean over rows of the sum over labels.
    """
    if true_ids.ndim == 2:
        said = np.where(true_ids, probabilities, 1 - probabilities)
        return float(-np.mean(np.log(np.maximum(said, np.finfo(np.float64).tiny)).sum(axis=1)))
    chosen = np.take_along_axis(probabilities, true_ids[:, None], axis=1)
    return float(-np.mean(np.log(np.maximum(chosen, np.finfo(np.float64).tiny))))


def brier_score(probabilities: Floats, true_ids: Ids) -> float:
    """Mean over rows of the squared distance between probabilities and the one-hot truth, 0 to 2 (Brier 1950, eq. 2).

    Of several labels a text the distance to all of them, 0 to c.
    """
    if true_ids.ndim == 2:
        return float(np.mean(np.sum((probabilities - true_ids) ** 2, axis=1)))
    chosen = np.take_along_axis(probabilities, true_ids[:, None], axis=1)[:, 0]
    return float(np.mean(np.sum(probabilities**2, axis=1) - 2 * chosen + 1))  # |p - e|² = |p|² - 2 p·e + 1


def wilson_interval(successes: float, trials: float) -> Interval:
    """The 95 % score interval of a proportion (Wilson 1927); it keeps to [0, 1] and holds for few trials. 0 of 0 is [0, 1].

    Weighed trials may be no whole number.
    """
    assert 0 <= successes <= trials
    if trials == 0:
        return Interval(0.0, 0.0, 1.0)
    z2 = NORMAL_975**2
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
    """Resamples whole rows."""
    return _bootstrap_f1(_macro, macro_f1(true_ids, predicted_ids), true_ids, predicted_ids, seed, resamples)


def bootstrap_micro_f1(true_ids: Ids, predicted_ids: Ids, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """As bootstrap_macro_f1; ids (n, c)."""
    return _bootstrap_f1(_micro, micro_f1(true_ids, predicted_ids), true_ids, predicted_ids, seed, resamples)


def _bootstrap_f1(
    f1: Callable[["_ClassCounts"], Floats], estimate: float, true_ids: Ids, predicted_ids: Ids, seed: int, resamples: int
) -> Interval:
    drawn = [f1(counts) for (counts,) in _resampled(true_ids, [predicted_ids], seed, resamples)]
    return _shifted_interval(estimate, np.concatenate(drawn), len(true_ids))


def bootstrap_mean_average_precision(
    true_ids: Ids, probabilities: Floats, seed: int = 0, resamples: int = PRECISION_RESAMPLES
) -> Interval:
    """Resamples rows, and ranks each resample anew."""
    random = np.random.default_rng(seed)
    n = len(true_ids)
    resampled = (random.integers(0, n, n) for _ in range(resamples))
    drawn = [mean_average_precision(true_ids[rows], probabilities[rows]) for rows in resampled]
    return _shifted_interval(mean_average_precision(true_ids, probabilities), np.array(drawn), n)


def bootstrap_calibration_error(
    probabilities: Floats, true_ids: Ids, bins: int = CONFIDENCE_BINS, seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """Resamples rows: unlike F1, the error hangs on each row's own confidence.

    Few rows make the error itself too large, by about 0.17 of 20 rows and 0.025 of 1,000 where there is none. The interval
    reaches further down for that, and still holds an error of nearly 0 in fewer than 95 % of cases.
    """
    correct, confidence, bin_ids = _confidence(probabilities, true_ids, bins)
    gaps, n = correct - confidence, len(true_ids)
    estimate = expected_calibration_error(probabilities, true_ids, bins)
    if true_ids.ndim == 2:
        return _gap_interval(estimate, _resampled_gaps(gaps, bin_ids, n, bins, seed, resamples), n)
    random = np.random.default_rng(seed)
    drawn = []
    for size in _blocks(resamples, n):
        rows = random.integers(0, n, size=(size, n))
        places = bin_ids[rows] + bins * np.arange(size)[:, None]
        sums = np.bincount(places.ravel(), weights=gaps[rows].ravel(), minlength=size * bins).reshape(size, bins)
        drawn.append(np.abs(sums).sum(axis=1) / n)
    return _gap_interval(estimate, np.concatenate(drawn), n)


def _resampled_gaps(gaps: Floats, bin_ids: Ids, n: int, bins: int, seed: int, resamples: int) -> Floats:
    """The calibration error of each resample, where each of the n rows has len(gaps) / n statements that come and go together."""
    c = len(gaps) // n
    of_row = np.zeros((n, bins))
    np.add.at(of_row, (np.repeat(np.arange(n), c), bin_ids), gaps)
    random = np.random.default_rng(seed)
    drawn = [random.multinomial(n, np.full(n, 1 / n), size=size) @ of_row for size in _blocks(resamples, n)]  # (size, bins) each
    return np.asarray(np.abs(np.concatenate(drawn)).sum(axis=1) / len(gaps))


def bootstrap_difference(true_ids: Ids, first_ids: Ids, second_ids: Ids, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Macro-F1 (of the true labels) of the first predictions less that of the second: paired, both read from one resample.

    The luck of the rows cancels out, and the interval is as narrow as the predictions are alike (Berg-Kirkpatrick et al. 2012).
    Where each row says the same, three of three won for instance, the interval is that of the share of rows that are right.
    """
    estimate = macro_f1_of_true_labels(true_ids, first_ids) - macro_f1_of_true_labels(true_ids, second_ids)
    blocks = [
        _macro_of_true(first) - _macro_of_true(second)
        for first, second in _resampled(true_ids, [first_ids, second_ids], seed, resamples)
    ]
    drawn = np.concatenate(blocks)
    if _all_alike(drawn) and not (first_ids == second_ids).all():
        shares = bootstrap_share_difference(right(true_ids, first_ids), right(true_ids, second_ids), seed, resamples)
        return Interval(estimate, min(estimate, shares.low), max(estimate, shares.high))
    low, high = np.quantile(drawn, [0.025, 0.975])  # not shifted: a bias shared by both cancels out
    return Interval(estimate, float(low), float(high))


def bootstrap_share_difference(
    first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0, resamples: int = RESAMPLES
) -> Interval:
    """The share of true in the first less that in the second, (n,) each: paired, as in `bootstrap_difference`.

    To the pairs come one that is lost and one that is won (Bonett and Price 2012): three of three would otherwise be certain.
    """
    steps = first.astype(np.int64) - second.astype(np.int64)
    counts = np.bincount(steps + 1, minlength=3) + np.array([1, 0, 1])  # lost, the same, won
    n = len(steps) + 2
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples)
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / n, [0.025, 0.975])
    return Interval(float(steps.mean()), float(low), float(high))


def median_interval(values: Floats) -> Interval:
    """The median and its 95 % interval by order statistics (binomial, normal approximation); exact enough from 20 values on."""
    ordered, n = np.sort(values), len(values)
    half = NORMAL_975 * np.sqrt(n) / 2
    low, high = max(0, int(np.floor(n / 2 - half))), min(n - 1, int(np.ceil(n / 2 + half)))
    return Interval(float(np.median(ordered)), float(ordered[low]), float(ordered[high]))


def score_metrics(
    true_ids: Ids, probabilities: Floats, labels: Sequence[str], seed: int = 0, thresholds: Floats | None = None
) -> dict[str, Any]:
    """Everything that a report says of one model on one labelled set, ready for JSON; intervals are 95 %.

    `thresholds` (c,): from which probability on a label is given, where true_ids are (n, c).
    """
    n, c = probabilities.shape
    assert n == len(true_ids) > 0
    assert c == len(labels)
    assert np.isfinite(probabilities).all()
    assert (true_ids.ndim == 2) == (thresholds is not None)
    predicted_ids = predict(probabilities, thresholds)
    intervals = {
        "accuracy": wilson_interval(int(right(true_ids, predicted_ids).sum()), n),
        "macro_f1": bootstrap_macro_f1(true_ids, predicted_ids, seed),
        "ece": bootstrap_calibration_error(probabilities, true_ids, seed=seed),
    }
    if thresholds is not None:
        intervals["micro_f1"] = bootstrap_micro_f1(true_ids, predicted_ids, seed)
        intervals["mean_average_precision"] = bootstrap_mean_average_precision(true_ids, probabilities, seed)
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
    if true_ids.ndim == 2:
        return _ClassCounts((true_ids & predicted_ids).sum(axis=0), true_ids.sum(axis=0), predicted_ids.sum(axis=0))
    return _ClassCounts(
        hits=np.bincount(true_ids[true_ids == predicted_ids], minlength=c),
        support=np.bincount(true_ids, minlength=c),
        predicted=np.bincount(predicted_ids, minlength=c),
    )


def _f1(counts: _ClassCounts) -> Floats:
    return _ratio(2 * counts.hits, counts.support + counts.predicted)


def _micro(counts: _ClassCounts) -> Floats:
    """() or (resamples,); 0 where there is no label at all."""
    hits, support, predicted = (found.sum(axis=-1) for found in (counts.hits, counts.support, counts.predicted))
    return _ratio(2 * hits, support + predicted)


def _macro(counts: _ClassCounts) -> Floats:
    """() or (resamples,): the mean over the labels that occur."""
    occurring = np.sum(counts.support + counts.predicted > 0, axis=-1)
    return _ratio(_f1(counts).sum(axis=-1), occurring)


def _macro_of_true(counts: _ClassCounts) -> Floats:
    occurring = counts.support > 0
    return _ratio(np.sum(_f1(counts) * occurring, axis=-1), np.sum(occurring, axis=-1))


def _c(*ids: Ids) -> int:
    if ids[0].ndim == 2:
        return int(ids[0].shape[1])
    return int(np.max(ids)) + 1


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Floats:
    return np.asarray(np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0))


def _resampled(true_ids: Ids, predictions: Sequence[Ids], seed: int, resamples: int) -> list[list[_ClassCounts]]:
    """Blocks of resamples; each block holds, for each of the predictions, the counts of the same resampled rows.

    Drawing n rows with replacement is drawing how often each distinct outcome (true id, predicted ids) comes up: a multinomial
    over some hundred outcomes instead of a gather of n rows.
    """
    if true_ids.ndim == 2:
        return list(_resampled_sets(true_ids, predictions, seed, resamples))
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


def _resampled_sets(true_ids: Ids, predictions: Sequence[Ids], seed: int, resamples: int) -> Iterator[list[_ClassCounts]]:
    """As `_resampled`, of ids (n, c): an outcome is all labels of a row, true and predicted."""
    n, c = true_ids.shape
    outcomes, rows = np.unique(np.concatenate([true_ids, *predictions], axis=1), axis=0, return_counts=True)  # (k, …), (k,)
    true, *predicted = (part.astype(np.float64) for part in np.split(outcomes, 1 + len(predictions), axis=1))  # (k, c) each
    random = np.random.default_rng(seed)
    for size in _blocks(resamples, len(rows) + c):
        drawn = random.multinomial(n, rows / n, size=size).astype(np.float64)  # (size, k)
        support = drawn @ true
        yield [_ClassCounts(drawn @ (true * found), support, drawn @ found) for found in predicted]


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
    """Of each statement whether it is true, how sure it is, and its bin: (n,), or (n * c,) where each label is a statement."""
    if true_ids.ndim == 2:
        confidence, correct = probabilities.ravel(), true_ids.ravel().astype(np.float64)
    else:
        confidence = probabilities.max(axis=1)
        correct = (predict(probabilities) == true_ids).astype(np.float64)
    bin_ids = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], confidence)
    return correct, confidence, bin_ids.astype(np.int64)


def _shifted_interval(estimate: float, drawn: Floats, n: int) -> Interval:
    """The percentile interval (Efron 1979) of n rows, shifted back by the bootstrap's own bias.

    Where all resamples say the same, as of rows that are all right or all wrong, it is the interval of a share of n.

    Resampling thins out small labels, which lowers macro-F1, and adds noise to absolute gaps, which raises the calibration error.
    Over 400 simulated sets of 1,000 rows and 77 labels the plain interval of macro-F1 held the true value in 90.5 %, this one
    in 95 %.
    """
    if _all_alike(drawn):
        share = wilson_interval(min(estimate * n, n), n)
        return Interval(estimate, share.low, share.high)
    low, high = np.clip(np.quantile(drawn, [0.025, 0.975]) - (drawn.mean() - estimate), 0, 1)
    return Interval(estimate, float(low), float(high))


def _gap_interval(estimate: float, drawn: Floats, n: int) -> Interval:
    """As `_shifted_interval`; its lower end is shifted twice, as the noise of the rows has raised the estimate too.

    Of 200 rows with a true error of 0.024 it holds that in 88 % of cases, with 0.08 in 93 %; shifted once, in 52 % and 89 %.
    """
    shifted = _shifted_interval(estimate, drawn, n)
    if _all_alike(drawn):
        return shifted
    low = float(np.quantile(drawn, 0.025)) - 2 * max(0.0, float(drawn.mean()) - estimate)
    return Interval(estimate, float(np.clip(low, 0, shifted.low)), shifted.high)


def _all_alike(drawn: Floats) -> bool:
    return bool(np.ptp(drawn) < 1e-12)
