"""Detectors: reference rows and window rows in, a verdict with statistic, threshold, p and effect size out. numpy only.

Promise: where nothing has changed, the chance that any detector of a run alarms is at most `budget`, however many rows or
classes there are. The rows of both are dealt out anew, reference-sized and window-sized, thousands of times (seeded); all
detectors look at the same deals, and their p values are adjusted together by the smallest of each deal (Westfall and Young 1993,
single-step min-p). Dealing from both, and not from the reference alone, keeps the promise where the reference has too few rows
to show what is usual: a first unknown token in a thousand is no alarm. It is a promise of one run, on texts that come by
themselves: one text sent again and again is no longer as many rows (docs/explanation/drift.md).

Does not know labels that turned out to be true: a change of what texts mean, with the texts unchanged, is invisible here
(feedback.py sees it).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
Verdict = Literal["drift", "no_drift", "too_few_rows"]

DEALS = 1_999  # with the observed one 2,000: the 1 % of all deals that may alarm are then 20
BLOCK = 4_000_000  # rows dealt at once: 32 MB a detector
MIN_ROWS = 25  # below, no verdict; KS on confidence finds a new domain at about this size
MAX_ROWS = 10_000  # of each side; more would sharpen no verdict that matters, and cost time


@dataclass(frozen=True)
class Rows:
    """The features of predictions, (n,) each; label_ids count the labels of the manifest, or are (n, c) in a multi-label version.

    `sketches` is (n, 16), and not a number where a record was written without one.
    """

    label_ids: Ids
    scores: Floats
    max_logits: Floats
    n_chars: Ids
    n_words: Ids
    n_tokens: Ids
    unknown_tokens: Ids
    sketches: Floats

    def __len__(self) -> int:
        return len(self.label_ids)

    def take(self, rows: Ids) -> "Rows":
        return Rows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def joined(self, other: "Rows") -> "Rows":
        return Rows(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Finding:
    """What one detector says. `reference` and `window` are the figure that people compare; `effect` is in the detector's unit."""

    detector: str
    verdict: Verdict
    reference: float | None
    window: float | None
    effect: float | None
    least_effect: float
    statistic: float | None
    threshold: float | None  # from here on the statistic is rarer than the budget allows
    p: float | None  # adjusted: the chance that any detector finds something this rare where nothing has changed


@dataclass(frozen=True)
class Deals:
    """Which rows of the pool are the reference: (b, m + n) booleans; all other rows are the window."""

    is_reference: NDArray[np.bool_]
    m: int
    n: int


@dataclass(frozen=True)
class Detector:
    """`statistics` gives one number a deal, larger where the two sides differ more."""

    name: str
    least_effect: float  # smaller ones are no news, however sure
    statistics: Callable[[Rows, Deals], Floats]
    figure: Callable[[Rows], float]
    effect: Callable[[Rows, Rows], float]
    fits: Callable[[Rows], bool] = lambda rows: True


def detect(reference: Rows, window: Rows, *, budget: float = 0.01, min_rows: int = MIN_ROWS, seed: int = 0) -> list[Finding]:
    """One finding a detector; with fewer than `min_rows` on either side each says too_few_rows and gives no figure.

    A detector whose figures are missing in some of the rows has no finding: the others share the budget.
    """
    if min(len(reference), len(window)) < max(min_rows, 2):
        return [_unsaid(detector) for detector in DETECTORS]
    random = np.random.default_rng(seed)
    reference, window = _at_most(MAX_ROWS, reference, random), _at_most(MAX_ROWS, window, random)
    pool = reference.joined(window)
    detectors = [detector for detector in DETECTORS if detector.fits(pool)]
    blocks = [_all(pool, deals, detectors) for deals in _deals(len(reference), len(window), random)]
    statistics = np.concatenate(blocks)  # (1 + DEALS, k)
    p_values, thresholds = _adjusted(statistics, budget)
    return [
        _finding(detector, reference, window, float(statistics[0, k]), float(thresholds[k]), float(p_values[k]), budget)
        for k, detector in enumerate(detectors)
    ]


def overall(findings: Sequence[Finding]) -> Verdict:
    """The verdict of the run: one alarm is enough, the budget is for all of them together."""
    verdicts = {finding.verdict for finding in findings}
    return "drift" if "drift" in verdicts else "too_few_rows" if "too_few_rows" in verdicts else "no_drift"


def _unsaid(detector: Detector) -> Finding:
    return Finding(detector.name, "too_few_rows", None, None, None, detector.least_effect, None, None, None)


def _at_most(most: int, rows: Rows, random: np.random.Generator) -> Rows:
    return rows if len(rows) <= most else rows.take(random.choice(len(rows), most, replace=False))


def _deals(m: int, n: int, random: np.random.Generator) -> Iterator[Deals]:
    """What was observed first, then DEALS at random."""
    observed = np.arange(m + n) < m
    yield Deals(observed[None, :], m, n)
    size = max(1, BLOCK // (m + n))
    for start in range(0, DEALS, size):
        rows = np.broadcast_to(observed, (min(size, DEALS - start), m + n))
        yield Deals(random.permuted(rows, axis=1), m, n)


def _all(pool: Rows, deals: Deals, detectors: Sequence[Detector]) -> Floats:
    return np.stack([detector.statistics(pool, deals) for detector in detectors], axis=1)  # (b, k)


def _adjusted(statistics: Floats, budget: float) -> tuple[Floats, Floats]:
    """Per detector: the adjusted p of the first row, and the least statistic that would alarm.

    A deal's p by one detector is the share of deals with at least its statistic; its smallest p is what the family is judged by.
    """
    deals, detectors = statistics.shape
    descending = -np.sort(-statistics, axis=0)
    at_least = np.stack(
        [np.searchsorted(-descending[:, k], -statistics[:, k], side="right") for k in range(detectors)], axis=1
    )  # (b, k): deals with at least this statistic, itself included
    smallest = np.sort(at_least.min(axis=1))
    p_values = np.searchsorted(smallest, at_least[0], side="right") / deals
    allowed = int(budget * deals)
    rank = int(smallest[allowed]) - 1 if allowed < deals else deals  # the most deals that may share a statistic and still alarm
    thresholds = [_least_alarming(descending[:, k], rank) for k in range(detectors)]
    return p_values, np.array(thresholds)


def _least_alarming(descending: Floats, rank: int) -> float:
    """The least value that at most `rank` of the deals reach; above all of them where even the largest is too common."""
    values, counts = np.unique(-descending, return_counts=True)
    rare = np.flatnonzero(np.cumsum(counts) <= rank)
    return float(-values[rare[-1]]) if len(rare) else float(np.nextafter(descending[0], np.inf))


def _finding(
    detector: Detector, reference: Rows, window: Rows, statistic: float, threshold: float, p: float, budget: float
) -> Finding:
    effect = detector.effect(reference, window)
    alarming = p <= budget and abs(effect) >= detector.least_effect
    return Finding(
        detector=detector.name,
        verdict="drift" if alarming else "no_drift",
        reference=detector.figure(reference),
        window=detector.figure(window),
        effect=effect,
        least_effect=detector.least_effect,
        statistic=statistic,
        threshold=threshold,
        p=p,
    )


def kolmogorov_smirnov(values: NDArray[np.generic], deals: Deals) -> Floats:
    """The largest distance of the two distribution functions, (b,)."""
    order = np.argsort(values, kind="stable")
    in_order = values[order]
    ends = np.flatnonzero(np.append(in_order[1:] != in_order[:-1], True))  # equal values count together
    below = np.cumsum(deals.is_reference[:, order], axis=1, dtype=np.int32)[:, ends]  # (b, distinct) reference rows up to a value
    return np.asarray(np.abs(below / deals.m - (ends + 1 - below) / deals.n).max(axis=1), np.float64)


def g_statistic(ids: Ids, deals: Deals) -> Floats:
    """Twice the log likelihood ratio of two shares of labels against one (Wilks 1938), (b,).

    Of `ids` (n, c), which say of each label whether it was given, the sum over the labels: given or not is a share of two.
    """
    if ids.ndim == 2:
        return np.asarray(sum(g_statistic(given, deals) for given in ids.T), np.float64)
    order = np.argsort(ids, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(ids[order]) != 0))
    totals = np.diff(np.append(starts, len(ids)))  # (labels that occur,)
    counts = np.add.reduceat(deals.is_reference[:, order], starts, axis=1, dtype=np.int64)
    share = deals.m / len(ids)
    return np.asarray(2 * (_deviance(counts, totals * share) + _deviance(totals - counts, totals * (1 - share))))


def _deviance(found: Ids, expected: Floats) -> Floats:
    """Sum of found·ln(found / expected), where 0·ln 0 is 0."""
    return np.asarray((found * np.log(np.maximum(found, 1) / expected)).sum(axis=1))


def rate_difference(above: NDArray[np.generic], below: NDArray[np.generic], deals: Deals) -> Floats:
    """Reference less window of sum(above) / sum(below), (b,)."""
    columns = np.stack([above, below], axis=1).astype(np.float64)
    in_reference = deals.is_reference.astype(np.float64) @ columns  # (b, 2)
    in_window = columns.sum(axis=0) - in_reference
    reference = in_reference[:, 0] / np.maximum(in_reference[:, 1], 1)
    window = in_window[:, 0] / np.maximum(in_window[:, 1], 1)
    return np.asarray(np.round(reference - window, 12))  # equal deals must tie, whatever the order of their sums


def centroid_distance(sketches: Floats, deals: Deals) -> Floats:
    """The squared distance of the two mean sketches in units of the pool's own spread (Hotelling 1931), (b,)."""
    return _distance(_whitened(sketches), deals)


def _distance(white: Floats, deals: Deals) -> Floats:
    in_reference = deals.is_reference.astype(np.float64) @ white  # (b, k)
    apart = in_reference / deals.m - (white.sum(axis=0) - in_reference) / deals.n
    return np.asarray(np.round((apart**2).sum(axis=1), 12))


def _whitened(sketches: Floats) -> Floats:
    """Centred, uncorrelated, of unit variance; a direction in which nothing varies is left out."""
    centred = sketches - sketches.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    kept = spread > 1e-9 * max(1.0, float(spread[0]))
    return np.asarray(centred @ directions[kept].T / spread[kept] * np.sqrt(len(sketches)))


def centroid_effect(reference: Rows, window: Rows) -> float:
    """The distance of the mean sketches in standard deviations, less what chance alone puts between so many rows."""
    m, n = len(reference), len(window)
    observed = Deals((np.arange(m + n) < m)[None, :], m, n)
    white = _whitened(np.concatenate([reference.sketches, window.sketches]))  # chance is at work in its directions alone
    return float(np.sqrt(max(0.0, float(_distance(white, observed)[0]) - white.shape[1] * (1 / m + 1 / n))))


def _of(column: str) -> Callable[[Rows], NDArray[np.generic]]:
    return lambda rows: np.asarray(getattr(rows, column))


def _distribution(name: str, column: str, least_effect: float) -> Detector:
    """By KS; its statistic is its effect, from 0 to 1, and does not grow with the rows."""
    read = _of(column)

    def distance(reference: Rows, window: Rows) -> float:
        observed = Deals((np.arange(len(reference) + len(window)) < len(reference))[None, :], len(reference), len(window))
        return float(kolmogorov_smirnov(np.concatenate([read(reference), read(window)]), observed)[0])

    return Detector(
        name,
        least_effect,
        statistics=lambda pool, deals: kolmogorov_smirnov(read(pool), deals),
        figure=lambda rows: float(np.mean(read(rows).astype(np.float64))),
        effect=distance,
    )


def total_variation(reference: Rows, window: Rows) -> float:
    """The share of predictions that would have to move to another label to make the two alike, 0 to 1.

    Where a text may have several labels: the largest change of a label's share.
    """
    if reference.label_ids.ndim == 2:
        return float(np.abs(reference.label_ids.mean(axis=0) - window.label_ids.mean(axis=0)).max())
    c = int(max(reference.label_ids.max(), window.label_ids.max())) + 1
    shares = [np.bincount(rows.label_ids, minlength=c) / len(rows) for rows in (reference, window)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _largest_share(rows: Rows) -> float:
    if rows.label_ids.ndim == 2:
        return float(rows.label_ids.mean(axis=0).max())
    return float(np.bincount(rows.label_ids).max() / len(rows))


def _unknown_rate(rows: Rows) -> float:
    return float(rows.unknown_tokens.sum() / max(int(rows.n_tokens.sum()), 1))


def _mean_score(rows: Rows) -> float:
    return float(rows.scores.mean())


DETECTORS: tuple[Detector, ...] = (
    _distribution("confidence", "scores", 0.05),
    Detector(
        "predicted_classes",
        0.05,
        statistics=lambda pool, deals: g_statistic(pool.label_ids, deals),
        figure=_largest_share,
        effect=total_variation,
    ),
    _distribution("n_chars", "n_chars", 0.05),
    _distribution("n_words", "n_words", 0.05),
    Detector(
        "unknown_token_rate",
        0.002,
        statistics=lambda pool, deals: np.abs(rate_difference(pool.unknown_tokens, pool.n_tokens, deals)),
        figure=_unknown_rate,
        effect=lambda reference, window: _unknown_rate(window) - _unknown_rate(reference),
    ),
    _distribution("max_logit", "max_logits", 0.05),
    Detector(
        "estimated_accuracy",  # by the difference of mean confidences (Guillory et al. 2021), one-sided: only a fall alarms
        0.02,
        statistics=lambda pool, deals: rate_difference(pool.scores, np.ones(len(pool)), deals),
        figure=_mean_score,
        effect=lambda reference, window: _mean_score(window) - _mean_score(reference),
    ),
    Detector(
        "embedding",
        0.2,
        statistics=lambda pool, deals: centroid_distance(pool.sketches, deals),
        figure=lambda rows: float(np.linalg.norm(rows.sketches.mean(axis=0))),
        effect=centroid_effect,
        fits=lambda pool: bool(np.isfinite(pool.sketches).all()),
    ),
)
