"""What a model has to beat: always the most frequent label, and TF-IDF with logistic regression, on the same rows.

Both are deterministic, take no setting and give probabilities, so that they are measured exactly as the model is.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from pigeonhole.evaluation.logistic import fit_logistic
from pigeonhole.metrics import Floats, Ids, score_metrics

FOLDS = 5
# 10 costs twice the time of 1 and gives the baseline 4 points on banking77, 1 on tickets; 30 and 100 give no more.
REGULARISATION = 10.0
MAX_FEATURES = 200_000  # keeps c * features within memory for any data set; banking77 has 21,000


def score_baselines(
    train_texts: Sequence[str], train_ids: Ids, texts: Sequence[str], true_ids: Ids, labels: Sequence[str], seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Fit on the training rows, measure on the others; the dictionaries are those of `score_metrics`."""
    majority = majority_probabilities(train_ids, len(texts), len(labels))
    return _scored(true_ids, majority, tfidf_probabilities(train_texts, train_ids, texts, len(labels)), labels, seed)


def _scored(true_ids: Ids, majority: Floats, tfidf: Floats, labels: Sequence[str], seed: int) -> dict[str, dict[str, Any]]:
    """Of several labels a text each is given that is likelier than not."""
    thresholds = np.full(len(labels), 0.5) if true_ids.ndim == 2 else None
    found = {"majority": majority, "tfidf": tfidf}
    return {name: score_metrics(true_ids, probabilities, labels, seed, thresholds) for name, probabilities in found.items()}


def cross_fit_baselines(texts: Sequence[str], true_ids: Ids, labels: Sequence[str], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Where no training rows are at hand: each fifth of the rows is answered by baselines fitted on the other four.

    Rows of one label are dealt out over the folds in a seeded order, so that a label with fewer rows than folds is only absent
    from some of the fits; a single row has nothing to be fitted on but itself.
    """
    fold_ids = deal(true_ids, min(FOLDS, len(texts)), seed)
    majority, tfidf = np.zeros((2, len(texts), len(labels)))
    for fold in np.unique(fold_ids):
        held_out = np.flatnonzero(fold_ids == fold)
        fitted = np.flatnonzero(fold_ids != fold) if len(texts) > 1 else held_out
        train_texts = [texts[i] for i in fitted.tolist()]
        held_out_texts = [texts[i] for i in held_out.tolist()]
        majority[held_out] = majority_probabilities(true_ids[fitted], len(held_out), len(labels))
        tfidf[held_out] = tfidf_probabilities(train_texts, true_ids[fitted], held_out_texts, len(labels))
    return _scored(true_ids, majority, tfidf, labels, seed)


def majority_probabilities(train_ids: Ids, n: int, c: int) -> Floats:
    """(n, c): for each row the label frequencies of the training rows, whose maximum is the most frequent label."""
    if train_ids.ndim == 2:
        return np.tile(train_ids.mean(axis=0), (n, 1))
    return np.tile(np.bincount(train_ids, minlength=c) / len(train_ids), (n, 1))


def tfidf_probabilities(train_texts: Sequence[str], train_ids: Ids, texts: Sequence[str], c: int) -> Floats:
    """(n, c): logistic regression on words and word pairs; a label without training rows gets 0.

    Of several labels a text: a regression for each, one against the rest.
    Where there is nothing to fit (one label only, or no word of two characters in any text) this is the majority baseline.
    """
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_FEATURES)
    has_words = any(map(vectorizer.build_analyzer(), train_texts))
    if not has_words or len(np.unique(train_ids)) < 2:
        return majority_probabilities(train_ids, len(texts), c)
    if train_ids.ndim == 2:
        features, wanted = vectorizer.fit_transform(train_texts), vectorizer.transform(texts)
        return np.stack([_one_against_the_rest(features, train_ids[:, label], wanted) for label in range(c)], axis=1)
    regression = fit_logistic(vectorizer.fit_transform(train_texts), train_ids, REGULARISATION)
    probabilities = np.zeros((len(texts), c))
    probabilities[:, regression.classes_] = regression.predict_proba(vectorizer.transform(texts))
    return probabilities


def _one_against_the_rest(features: Any, has_label: Ids, wanted: Any) -> Floats:
    """(n,): the probability of one label; where all training rows or none have it, their share."""
    if has_label.min() == has_label.max():
        return np.full(wanted.shape[0], float(has_label.mean()))
    found = fit_logistic(features, has_label, REGULARISATION).predict_proba(wanted)
    return np.asarray(found[:, 1], np.float64)


def deal(true_ids: Ids, folds: int, seed: int) -> Ids:
    """(n,) fold of each row: shuffled, sorted by label (of several by the first), then dealt out in turn like cards."""
    if true_ids.ndim == 2:
        true_ids = true_ids.argmax(axis=1)
    shuffled = np.random.default_rng(seed).permutation(len(true_ids))
    by_label = shuffled[np.argsort(true_ids[shuffled], kind="stable")]
    fold_ids = np.empty(len(true_ids), np.int64)
    fold_ids[by_label] = np.arange(len(true_ids)) % folds
    return fold_ids
