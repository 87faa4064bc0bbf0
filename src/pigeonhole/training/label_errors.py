"""`uv run label-errors data.path=FILE`: labels that are probably wrong, in a file to review, which becomes `data.patch`.

Each row is judged by a logistic regression on the frozen encoder that never saw it, and ranked by the probability that this gives
to its own label (self-confidence). How many labels are wrong is estimated by confident learning. Both: Northcutt, Jiang and
Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels".
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigeonhole import storage
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.dataset.amend import open_amendments
from pigeonhole.dataset.check import require_not_read, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.label_sets import ids_of
from pigeonhole.dataset.patch import Key, Patch, is_decided, write_review
from pigeonhole.dataset.read import Row
from pigeonhole.errors import ConfigError, DataError
from pigeonhole.options import setting
from pigeonhole.training.config import ModelConfig


@dataclass
class LabelErrorsConfig:
    """Which labels are probably wrong? Writes a file to review, which becomes data.patch.

    uv run label-errors data.path=my.csv data.text=message data.label=queue
    """

    out: str = setting("label-errors.csv", "URL of the review file")
    top: int = setting(500, "rows in it at most, the most suspicious first", ge=1, le=1_000_000)
    folds: int = setting(5, "parts of the rows; each is judged by a fit on the others", ge=2, le=100)
    seed: int = setting(0, "another seed, other parts", ge=0, le=2**32 - 1)
    threads: int = setting(0, "CPU threads, 0 for all cores", ge=0, le=1024)
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True)
class Suspects:
    """Rows that out-of-fold answers contradict: places (k,), the most suspicious first; `estimated` errors among all rows."""

    places: NDArray[np.int64]
    suggested_ids: NDArray[np.int64]
    self_confidence: NDArray[np.float64]
    estimated: int
    accuracy: float


def run(arguments: list[str]) -> dict[str, Any]:
    config = compose(LabelErrorsConfig, "label_errors", arguments)
    if config.data.task == "multi_label":
        raise ConfigError("data.task=multi_label: label-errors judges one label a text")
    if config.data.taxonomy:
        raise ConfigError("data.taxonomy: a review, as data.patch, speaks of the labels as they stand in the data; leave it out")
    _check_out(config)  # before the long work
    verify_files(config.data)
    amendments = open_amendments(config.data)
    rows = list(amendments.rows(config.data, config.data.path))
    counts = Counter(row.label for row in rows)
    labels = sorted(counts)
    several = sum(count > 1 for count in counts.values())  # a row's own fit does not see it, and has to know two labels
    if several < 2 or len(rows) < config.folds:
        raise DataError(
            f"{config.data.path}: {len(rows)} rows, {several} labels with more than one of them; "
            f"two such labels and {config.folds} rows are needed"
        )
    # torch and transformers take ten seconds to import: neither --help nor a wrong key has to wait for them.
    from pigeonhole.training.frozen import embed_texts

    label_ids = ids_of([row.label for row in rows], labels, "single_label")
    embeddings = embed_texts(config.model, labels, [row.text for row in rows], config.seed, config.threads)
    say(f"{len(rows)} rows, {len(labels)} labels: {config.folds} fits")
    found = find_suspects(out_of_fold(embeddings, label_ids, len(labels), config.folds, config.seed), label_ids)
    review = to_review(found, rows, labels, amendments.patch)[: config.top]
    write_review(config.out, review)
    say(f"next: decide on each line of {config.out} (keep, relabel, remove)")
    if amendments.patch:
        say(f"then put what was decided behind the lines of {config.data.patch}, which are not in it; train with that one")
    else:
        say(f"then, beside this line's data keys: uv run train … data.patch={config.out}")
    return {
        "review": config.out,
        "rows": len(rows),
        "listed": len(review),
        "estimated_errors": found.estimated,
        "out_of_fold_accuracy": found.accuracy,
        **amendments.report(),
    }


def _check_out(config: LabelErrorsConfig) -> None:
    """Raises ConfigError, StorageError."""
    storage.require_writable("out", config.out.rpartition("/")[0] or ".")
    path = storage.local_path(config.out)
    if path is not None and storage.exists(config.out) and path.is_dir():
        raise ConfigError(f"out={config.out}: is a folder, a file is needed")
    require_not_read("out", config.out, config.data)
    if is_decided(config.out):
        raise ConfigError(
            f"out={config.out}: holds decisions, which would be written over; give it as data.patch, or choose another file"
        )


def out_of_fold(
    embeddings: NDArray[np.float32], label_ids: NDArray[np.int64], c: int, folds: int, seed: int
) -> NDArray[np.float64]:
    """(n, c) probabilities, each row's by a fit on the other folds; a label that these lack gets 0."""
    from pigeonhole.evaluation.baselines import deal  # scikit-learn takes seconds to import
    from pigeonhole.evaluation.logistic import fit_logistic

    fold_ids = deal(label_ids, folds, seed)
    features = embeddings.astype(np.float64)
    probabilities = np.zeros((len(features), c))
    for fold in range(folds):
        others, held_out = fold_ids != fold, fold_ids == fold
        fitted = fit_logistic(features[others], label_ids[others], 1 / features.var(), tolerance=1e-3)
        probabilities[np.ix_(held_out, fitted.classes_)] = fitted.predict_proba(features[held_out])
    return probabilities


def to_review(found: Suspects, rows: Sequence[Row], labels: Sequence[str], patch: Patch | None) -> list[tuple[Row, str, float]]:
    """Rows, suggested labels and self-confidence; a text with its label once, and not where the patch has decided on it."""
    decided: set[Key] = set()
    if patch:
        decided = {*patch.kept, *((text, label) for (text, _), label in patch.relabelled.items())}
    review: dict[Key, tuple[Row, str, float]] = {}
    for place, suggestion, confidence in zip(found.places, found.suggested_ids, found.self_confidence, strict=True):
        row = rows[place]
        if (row.text, row.label) not in decided:
            review.setdefault((row.text, row.label), (row, labels[suggestion], confidence))
    return list(review.values())


def find_suspects(probabilities: NDArray[np.float64], label_ids: NDArray[np.int64]) -> Suspects:
    """`probabilities` (n, c) of rows by a model that did not see them."""
    n, c = probabilities.shape
    own = probabilities[np.arange(n), label_ids]
    predicted = probabilities.argmax(axis=1)
    contradicted = np.flatnonzero(predicted != label_ids)
    places = contradicted[np.argsort(own[contradicted], kind="stable")]
    # Confident joint: a row counts for another label where it is as probable as it usually is for rows that have it.
    usual = np.array([own[label_ids == label].mean() if (label_ids == label).any() else 1.0 for label in range(c)])
    confident = np.where(probabilities >= usual, probabilities, -1.0)
    errors = (confident.max(axis=1) >= 0) & (confident.argmax(axis=1) != label_ids)
    return Suspects(places, predicted[places], own[places], int(errors.sum()), float((predicted == label_ids).mean()))


main = command(run)

if __name__ == "__main__":
    main()
