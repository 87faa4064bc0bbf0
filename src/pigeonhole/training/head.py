"""The head is fitted on the frozen encoder first: fine-tuning then starts from a good classifier and moves the encoder less.

It is held back: a head that has most of the training rows right at once leaves the encoder nothing to learn of them. After few
epochs it may be fitted again, since the encoder has learned more by then than the head could follow.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pigeonhole.evaluation.logistic import fit_logistic, weights_of

# Inverse, for features of unit variance. With 1 all of tickets' training rows are right: reports/2026-11-29-held-back-head.md.
INVERSE_REGULARISATION = 0.01
TOLERANCE = 1e-3
EVERYWHERE = 5.0  # logit of a label that all training rows have


def fit_head(
    head: nn.Linear,
    embeddings: NDArray[np.float32],
    label_ids: NDArray[np.int64],
    balanced: bool = False,
) -> None:
    """Set the head (d -> c) to the logistic regression of label_ids (n,) on embeddings (n, d); `balanced`: labels weigh alike.

    Where a text may have several labels, label_ids (n, c) say which, and each label has a regression of its own.
    """
    strength = INVERSE_REGULARISATION / float(embeddings.var())
    if label_ids.ndim == 2:
        _set(head, *_each_against_the_rest(embeddings.astype(np.float64), label_ids, strength))
        return
    fitted = fit_logistic(embeddings.astype(np.float64), label_ids, strength, tolerance=TOLERANCE, balanced=balanced)
    _set(head, *weights_of(fitted))


def _each_against_the_rest(
    embeddings: NDArray[np.float64], label_ids: NDArray[np.int64], strength: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(c, d), (c,). Every label is in some training rows: the check has seen to that."""
    coefficients, intercept = np.zeros((label_ids.shape[1], embeddings.shape[1])), np.zeros(label_ids.shape[1])
    for label, has_label in enumerate(label_ids.T):
        if has_label.all():
            intercept[label] = EVERYWHERE
            continue
        fitted = fit_logistic(embeddings, has_label, strength, tolerance=TOLERANCE)
        coefficients[label], intercept[label] = fitted.coef_[0], fitted.intercept_[0]
    return coefficients, intercept


def _set(head: nn.Linear, coefficients: NDArray[np.float64], intercept: NDArray[np.float64]) -> None:
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(coefficients))
        head.bias.copy_(torch.from_numpy(intercept))
