"""Scores that mean what they say: temperature scaling, or a scale and a bias for each label (Guo et al. 2017).

Both are fitted on validation logits; which of them wins is decided on rows that neither was fitted on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit, log_expit, log_softmax, softmax

from pigeonhole.bundle import VectorScaling
from pigeonhole.metrics import Floats

COLDEST, HOTTEST = 0.05, 20.0
FOLDS = 5
PULL = 1.0  # towards the temperature, in rows: a label with few rows stays near it


@dataclass(frozen=True)
class Calibration:
    """What was fitted; `vector` only where it won. `held_out`: (n, c) probabilities of the rows, each by a fit without it
    (of several labels: by the one fit there is).
    """

    temperature: float
    vector: VectorScaling | None
    held_out: Floats
    nll_temperature: float
    nll_vector: float


def calibrate(logits: NDArray[np.floating], label_ids: NDArray[np.int64], seed: int, *, by_label: bool = True) -> Calibration:
    """The vector wins where it is better by more than one standard error on held-out rows (n, c), (n,).

    Without `by_label` it never does: where labels were made to weigh alike, its biases would take that back.
    """
    z = logits.astype(np.float64)
    fold = np.random.default_rng(seed).permutation(len(z)) % FOLDS
    by_temperature, by_vector = np.empty_like(z), np.empty_like(z)
    for number in range(FOLDS):
        inside, outside = fold == number, fold != number
        if not outside.any():
            outside = inside  # a single row has nothing to be fitted on but itself
        temperature = fit_temperature(z[outside], label_ids[outside])
        scale, bias = _fit_vector(z[outside], label_ids[outside], temperature)
        by_temperature[inside] = log_softmax(z[inside] / temperature, axis=1)
        by_vector[inside] = log_softmax(z[inside] * scale + bias, axis=1)
    temperature = fit_temperature(z, label_ids)
    rows = np.arange(len(z))
    gain = by_vector[rows, label_ids] - by_temperature[rows, label_ids]
    wins = by_label and len(gain) > 1 and gain.mean() > gain.std() / np.sqrt(len(gain))
    vector = VectorScaling(*(tuple(map(float, found)) for found in _fit_vector(z, label_ids, temperature))) if wins else None
    return Calibration(
        temperature,
        vector,
        np.exp(by_vector if wins else by_temperature),
        float(-by_temperature[rows, label_ids].mean()),
        float(-by_vector[rows, label_ids].mean()),
    )


def calibrate_labels(logits: NDArray[np.floating], label_ids: NDArray[np.int64]) -> Calibration:
    """Of label_ids (n, c), where a text may have several labels: one temperature for all sigmoids."""
    temperature = fit_temperature(logits, label_ids)
    scaled = logits.astype(np.float64) / temperature
    nll = float(-log_expit(np.where(label_ids, scaled, -scaled)).sum(axis=1).mean())
    return Calibration(temperature, None, expit(scaled), nll, nll)


def fit_temperature(logits: NDArray[np.floating], label_ids: NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log likelihood of label_ids (n,) given logits (n, c); in [0.05, 20].

    Of label_ids (n, c), where a text may have several labels, each of which has a sigmoid. To the rows, or to the n c statements
    about labels, comes one that is wrong (Laplace's rule of succession): a few dozen that are all right would otherwise say that
    none ever is wrong.
    """
    z, several = logits.astype(np.float64), label_ids.ndim == 2
    rows, other = np.arange(len(label_ids)), None if several else _likeliest_other(z, label_ids)

    def loss(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        if several:
            right, wrong = log_expit(np.where(label_ids, scaled, -scaled)), log_expit(np.where(label_ids, -scaled, scaled))
        else:
            likelihood = log_softmax(scaled, axis=1)
            right, wrong = likelihood[rows, label_ids], likelihood[rows, other]
        return float(-right.sum() - wrong.mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def _likeliest_other(logits: Floats, label_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,): what each row's label would most likely have been if the model were wrong."""
    others = logits.copy()
    others[np.arange(len(label_ids)), label_ids] = -np.inf
    return np.asarray(others.argmax(axis=1))


def _fit_vector(logits: Floats, label_ids: NDArray[np.int64], temperature: float) -> tuple[Floats, Floats]:
    """Scale and bias (c,) each, as `fit_temperature`, with a pull of PULL rows towards 1 / temperature and 0."""
    n, c = logits.shape
    z = logits / temperature
    rows, other = np.arange(n), _likeliest_other(z, label_ids)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scale, bias = parameters[:c], parameters[c:]
        scaled = z * scale + bias
        error = softmax(scaled, axis=1) * (1 + 1 / n)
        likelihood = log_softmax(scaled, axis=1)
        value = -likelihood[rows, label_ids].sum() - likelihood[rows, other].mean()
        value += PULL * (((scale - 1) ** 2).sum() + (bias**2).sum())
        error[rows, label_ids] -= 1
        error[rows, other] -= 1 / n
        gradient = np.concatenate([(error * z).sum(axis=0) + 2 * PULL * (scale - 1), error.sum(axis=0) + 2 * PULL * bias])
        return float(value), gradient

    found = minimize(loss, np.concatenate([np.ones(c), np.zeros(c)]), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return found[:c] / temperature, found[c:]


def fit_label_thresholds(probabilities: NDArray[np.float64], label_ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """(c,): from which probability on each label is given, for the best F1 of that label on these rows (n, c).

    Candidates lie half-way between neighbouring probabilities; of equally good ones the nearest to 0.5 is taken, and 0.5 for a
    label that no row has, so that a label with few rows is not moved by chance more than its F1 asks for.
    """
    return np.array([_best_threshold(*column) for column in zip(probabilities.T, label_ids.T, strict=True)])


def _best_threshold(probabilities: NDArray[np.float64], has_label: NDArray[np.int64]) -> float:
    order = np.argsort(-probabilities, kind="stable")
    # Given to the first k rows, for k from none to all: by a threshold above `lows` and at most `highs`.
    highs, lows = np.append(1.0, probabilities[order]), np.append(probabilities[order], 0.0)
    hits = np.append(0, np.cumsum(has_label[order]))
    f1 = 2 * hits / np.maximum(np.arange(len(hits)) + has_label.sum(), 1)
    apart = np.flatnonzero(lows < highs)  # rows with one probability are given the label together
    best = apart[f1[apart] >= f1[apart].max() - 1e-12]
    at_half = (lows[best] < 0.5) & (highs[best] >= 0.5)
    candidates = np.where(at_half, 0.5, (lows[best] + highs[best]) / 2)
    return float(candidates[np.argmin(np.abs(candidates - 0.5))])
