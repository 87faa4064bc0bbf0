"""Temperature scaling: one number, fitted on validation logits, that makes scores mean what they say (Guo et al. 2017)."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

COLDEST, HOTTEST = 0.05, 20.0


def fit_temperature(logits: NDArray[np.floating], label_ids: NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log likelihood of label_ids (n,) given logits (n, c); in [0.05, 20]."""
    rows = np.arange(len(label_ids))

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float(-log_softmax(scaled, axis=1)[rows, label_ids].mean())

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    return float(np.exp(found.x))
