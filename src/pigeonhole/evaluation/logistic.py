"""Logistic regression, the same for baselines, heads and TF-IDF models: scikit-learn's, on one thread of the BLAS.

The solver's many small products are slower on several threads (tickets with word pairs: 1.1 s on one, 3.2 s on two), far slower
where another process wants the cores too. One thread also gives the same last bits on every number of cores.
"""

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pigeonhole.metrics import Floats, Ids

MAX_ITERATIONS = 1_000


def fit_logistic(
    features: Any, label_ids: Ids, inverse_regularisation: float, *, tolerance: float = 1e-4, balanced: bool = False
) -> LogisticRegression:
    """`features` (n, d), dense or sparse; label_ids (n,); `balanced`: labels weigh alike, however many rows they have."""
    regression = LogisticRegression(
        C=inverse_regularisation, tol=tolerance, max_iter=MAX_ITERATIONS, class_weight="balanced" if balanced else None
    )
    with threadpool_limits(1, "blas"):
        return regression.fit(features, label_ids)


def weights_of(regression: LogisticRegression) -> tuple[Floats, Floats]:
    """(c, d) and (c,); scikit-learn keeps one row for two classes."""
    weight, bias = regression.coef_, regression.intercept_
    if len(bias) == 1:
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias
