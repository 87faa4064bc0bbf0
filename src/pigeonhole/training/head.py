"""The head is fitted on the frozen encoder first: fine-tuning then starts from a good classifier and moves the encoder less."""

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torch import nn

# Inverse regularisation for features of unit variance; 1 to 30 differ by less than a point on tickets and banking77.
INVERSE_REGULARISATION = 1.0


def fit_head(head: nn.Linear, embeddings: NDArray[np.float32], label_ids: NDArray[np.int64]) -> None:
    """Set the head (d -> c) to the logistic regression of label_ids (n,) on embeddings (n, d)."""
    strength = INVERSE_REGULARISATION / float(embeddings.var())
    fitted = LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(embeddings.astype(np.float64), label_ids)
    coefficients, intercept = fitted.coef_, fitted.intercept_
    if len(intercept) == 1:  # scikit-learn keeps one row for two classes
        coefficients, intercept = np.concatenate([-coefficients, coefficients]) / 2, np.concatenate([-intercept, intercept]) / 2
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(coefficients))
        head.bias.copy_(torch.from_numpy(intercept))
