"""Scores that mean what they say: temperature scaling, or a scale and a bias for each label (Guo et al. 2017).

Both are fitted on validation logits; which of them wins is decided on rows that neither was fitted on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, softmax

from pigeonhole.bundle import VectorScaling

Floats = NDArray[np.float64]

COLDEST, HOTTEST = 0.05, 20.0
FOLDS = 5
PULL = 1.0  # towards the temperature, in rows: a label with few rows stays near it


@dataclass(frozen=True)
class Calibration:
    """What was fitted; `vector` only where it won. `held_out`: (n, c) probabilities of the rows, each by a fit without it."""

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
        temperature = fit_temperature(z[outside], label_ids[outside])
        scale, bias = _fit_vector(z[outside], label_ids[outside], temperature)
        by_temperature[inside] = log_softmax(z[inside] / temperature, axis=1)
        by_vector[inside] = log_softmax(z[inside] * scale + bias, axis=1)
    temperature = fit_temperature(z, label_ids)
    rows = np.arange(len(z))
    gain = by_vector[rows, label_ids] - by_temperature[rows, label_ids]
    wins = by_label and gain.mean() > gain.std() / np.sqrt(len(gain))
    vector = VectorScaling(*(tuple(map(float, found)) for found in _fit_vector(z, label_ids, temperature))) if wins else None
    return Calibration(
        temperature,
        vector,
        np.exp(by_vector if wins else by_temperature),
        float(-by_temperature[rows, label_ids].mean()),
        float(-by_vector[rows, label_ids].mean()),
    )


def fit_temperature(logits: NDArray[np.floating], label_ids: NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log likelihood of label_ids (n,) given logits (n, c); in [0.05, 20]."""
    rows = np.arange(len(label_ids))

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float(-log_softmax(scaled, axis=1)[rows, label_ids].mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def _fit_vector(logits: Floats, label_ids: NDArray[np.int64], temperature: float) -> tuple[Floats, Floats]:
    """Scale and bias (c,) each, by the negative log likelihood and a pull of PULL rows towards 1 / temperature and 0."""
    n, c = logits.shape
    z = logits / temperature
    rows = np.arange(n)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        scale, bias = parameters[:c], parameters[c:]
        scaled = z * scale + bias
        error = softmax(scaled, axis=1)
        value = -log_softmax(scaled, axis=1)[rows, label_ids].sum() + PULL * (((scale - 1) ** 2).sum() + (bias**2).sum())
        error[rows, label_ids] -= 1
        gradient = np.concatenate([(error * z).sum(axis=0) + 2 * PULL * (scale - 1), error.sum(axis=0) + 2 * PULL * bias])
        return float(value), gradient

    found = minimize(loss, np.concatenate([np.ones(c), np.zeros(c)]), jac=True, method="L-BFGS-B", options={"maxiter": 100}).x
    return found[:c] / temperature, found[c:]
