"""The rules behind accept, review and out of scope, fitted on rows that the weights were not fitted on.

Knows predictions, not models: what is fitted here was said by the very model that will be served.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from pigeonhole import storage
from pigeonhole.bundle import NEIGHBOURS, Manifest, OutOfScope, OutOfScopeRule, ThresholdTarget
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.command import say
from pigeonhole.dataset.label_sets import ids_of
from pigeonhole.dataset.load import Dataset
from pigeonhole.evaluation.decisions import auroc, score_decisions, score_out_of_scope, strange
from pigeonhole.evaluation.labelled import thresholds_of
from pigeonhole.evaluation.score import predict_texts
from pigeonhole.metrics import Floats, Ids, predict, right
from pigeonhole.training.calibration import Calibration, calibrate, calibrate_labels, fit_label_thresholds
from pigeonhole.training.config import DecisionConfig

PRIOR_ROWS = 20  # of all labels: beside a label's own rows, of which there are few
CANDIDATES = 201  # thresholds that are tried
LEVELS = 50
RISK = 0.1  # that the precision promised is missed on other rows like these
MOST_NEIGHBOURS = 1024  # 0.05 ms a text at 384 numbers each
RULES: tuple[OutOfScopeRule, ...] = ("neighbour", "max_logit")


@dataclass(frozen=True)
class Rules:
    """All that was fitted; `scope` and `neighbours` are None where there was nothing to fit them on."""

    calibration: Calibration
    target: float | None
    promise: "Promise | None"
    scope: "Scope | None"
    neighbours: NDArray[np.float32] | None
    label_thresholds: Floats | None = None  # (c,), from which probability on each label is given, where a text may have several


def fit_rules(
    classifier: Classifier,
    inside: Sequence[Prediction],
    manifest: Manifest,
    dataset: Dataset,
    config: DecisionConfig,
    seed: int,
    *,
    by_label: bool = True,
) -> Rules:
    """On the validation rows, `inside` being what the served model, `classifier`, says of them, and on texts that belong to no
    label where there are such.
    """
    validation = dataset.split.validation
    label_ids = ids_of([row.label for row in validation], manifest.labels, manifest.task)
    if manifest.task == "multi_label":
        calibration = calibrate_labels(np.stack([found.logits for found in inside]), label_ids)
        return Rules(calibration, None, None, None, None, fit_label_thresholds(calibration.held_out, label_ids))
    calibration = calibrate(np.stack([found.logits for found in inside]), label_ids, seed, by_label=by_label)
    promise = None
    if config.precision is not None:
        promise = fit_thresholds(calibration.held_out, label_ids, config.precision, seed)
        if not promise.kept:
            say(f"decision.precision={config.precision:g}: {len(validation)} validation rows cannot show it; all is for review")
    if not dataset.out_of_scope.fitted:
        return Rules(calibration, config.precision, promise, None, None)
    train = dataset.split.train
    places = choose_neighbours(ids_of([row.label for row in train], manifest.labels, manifest.task))
    neighbours = as_neighbours(predict_texts(classifier, [train[place].text for place in places]))
    scope = fit_out_of_scope(inside, predict_texts(classifier, dataset.out_of_scope.fitted), neighbours, config.kept)
    return Rules(calibration, config.precision, promise, scope, neighbours if scope.rule.rule == "neighbour" else None)


def rows_to_show(target: float) -> int:
    """The fewest validation rows that can promise the precision `target`: half of them are accepted, and all are right."""
    return 2 * math.ceil(math.log(RISK) / math.log(target))


def write_rules(rules: Rules, manifest: Manifest, folder: Path) -> Manifest:
    """The manifest with the rules; neighbours.npy where they need it."""
    if rules.neighbours is not None:
        data = io.BytesIO()  # to a file itself numpy says of a full disk only how many numbers it took
        np.save(data, rules.neighbours, allow_pickle=False)
        storage.write(str(folder / NEIGHBOURS), data.getvalue())
    thresholds, target = manifest.thresholds, None
    if rules.promise is not None and rules.target is not None:
        thresholds = dict(zip(manifest.labels, rules.promise.thresholds.tolist(), strict=True))
        target = ThresholdTarget("precision", rules.target)
    if rules.label_thresholds is not None:
        thresholds = dict(zip(manifest.labels, rules.label_thresholds.tolist(), strict=True))
    return msgspec.structs.replace(
        manifest,
        temperature=rules.calibration.temperature,
        vector_scaling=rules.calibration.vector,
        thresholds=thresholds,
        threshold_target=target,
        out_of_scope=rules.scope.rule if rules.scope else None,
    )


def score_rules(
    rules: Rules, manifest: Manifest, true_ids: Ids, inside: Sequence[Prediction], outside: Sequence[Prediction]
) -> dict[str, Any]:
    """What the manifest's metrics say of the rules: the test rows, and the texts out of scope that nothing was fitted on."""
    scope, promise, calibration = rules.scope, rules.promise, rules.calibration
    given = predict(np.stack([found.probabilities for found in inside]), thresholds_of(manifest))
    return {
        "test": score_decisions(right(true_ids, given), inside),
        "target": rules.target,
        "fitted": None if promise is None else {"kept": promise.kept, "n": promise.accepted, "precision": promise.precision},
        "calibration": {
            "kind": "temperature" if calibration.vector is None else "vector",
            "held_out_nll": {"temperature": calibration.nll_temperature, "vector": calibration.nll_vector},
        },
        "out_of_scope": None
        if scope is None
        else {
            "rule": scope.rule.rule,
            "fitted_auroc": scope.auroc,
            "test": score_out_of_scope(scope.rule.rule, inside, outside, rules.neighbours),
        },
    }


@dataclass(frozen=True)
class Promise:
    """Thresholds (c,), and the accepted rows that they were tested on; `kept` is False where none passed."""

    thresholds: Floats
    kept: bool
    accepted: int
    precision: float


def fit_thresholds(probabilities: Floats, label_ids: Ids, target: float, seed: int = 0) -> Promise:
    """The lowest thresholds under which at least `target` of the accepted answers are right, but for a risk of 10 %.

    probabilities (n, c) are of rows that the calibration was not fitted on. Each label's threshold is where its own precision
    (see PRIOR_ROWS) reaches a level, on one half of the rows. The level is the same for all labels: from the strictest on it is
    lowered as long as, on the other half, the lower Clopper-Pearson bound of the accepted rows' precision is `target`; tests in a
    fixed order need no correction for their number (Angelopoulos et al. 2021, "Learn then Test"). Where none passes, nothing is
    accepted.
    """
    predicted, c = probabilities.argmax(axis=1), probabilities.shape[1]
    scores, right = probabilities.max(axis=1), predicted == label_ids
    shaping = np.random.default_rng(seed).permutation(len(scores)) % 2 == 0
    precisions = _Precisions(scores[shaping], right[shaping], predicted[shaping], c)
    best = Promise(np.ones(c), False, 0, 0.0)
    for level in np.linspace(1, target, LEVELS + 1)[1:]:
        thresholds = precisions.thresholds(level)
        accepted = ~shaping & (scores >= thresholds[predicted])
        n, hits = int(accepted.sum()), int(right[accepted].sum())
        if _lower_bound(n, n) < target:
            continue  # too few rows, even if all of them were right
        if _lower_bound(hits, n) < target:
            break
        best = Promise(thresholds, True, n, hits / n)
    return best


class _Precisions:
    """Each label's precision above a score: of its own rows and PRIOR_ROWS more, right as often as those of all labels."""

    def __init__(self, scores: Floats, right: NDArray[np.bool_], predicted: Ids, c: int) -> None:
        self._candidates = np.unique(np.quantile(scores, np.linspace(0, 1, CANDIDATES), method="nearest"))
        hits, n = self._above(scores, right)
        shared = PRIOR_ROWS * hits / n
        own = (self._above(scores[predicted == label], right[predicted == label]) for label in range(c))
        self._precisions = np.array([(hits + shared) / (n + PRIOR_ROWS) for hits, n in own])  # (c, candidates)

    def _above(self, scores: Floats, right: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        order = np.argsort(scores)
        places = np.searchsorted(scores[order], self._candidates)
        hits = np.append(right[order][::-1].cumsum()[::-1], 0)
        return hits[places].astype(np.float64), (len(scores) - places).astype(np.float64)

    def thresholds(self, level: float) -> Floats:
        """(c,): the lowest score from which on a label's precision is `level`; 1 where none has it."""
        reached = self._precisions >= level
        return np.where(reached.any(axis=1), self._candidates[reached.argmax(axis=1)], 1.0)


def _lower_bound(hits: int, n: int) -> float:
    return float(beta.ppf(RISK, hits, n - hits + 1)) if hits else 0.0


@dataclass(frozen=True)
class Scope:
    """The rule that won, and how well either tells validation rows from texts out of scope."""

    rule: OutOfScope
    auroc: dict[OutOfScopeRule, float]


def fit_out_of_scope(
    inside: Sequence[Prediction], outside: Sequence[Prediction], neighbours: NDArray[np.float32], kept: float
) -> Scope:
    """`kept` is the share of the texts inside that stay in scope; the rule is the one with the larger AUROC."""
    found = {rule: (strange(rule, inside, neighbours), strange(rule, outside, neighbours)) for rule in RULES}
    areas = {rule: auroc(*both) for rule, both in found.items()}
    best = max(RULES, key=lambda rule: areas[rule])
    limit = float(np.quantile(found[best][0], kept, method="higher"))
    return Scope(OutOfScope(best, limit), areas)


def choose_neighbours(label_ids: Ids) -> list[int]:
    """Places of training rows, as many of each label as there is room for; of a label the first ones."""
    room = max(1, MOST_NEIGHBOURS // len(np.unique(label_ids)))
    return sorted(int(place) for label in np.unique(label_ids) for place in np.flatnonzero(label_ids == label)[:room])


def as_neighbours(predictions: Sequence[Prediction]) -> NDArray[np.float32]:
    """(v, d), each of length 1."""
    embeddings = np.stack([found.embedding for found in predictions])
    lengths = np.sqrt((embeddings**2).sum(axis=1, keepdims=True))
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), np.float32)
