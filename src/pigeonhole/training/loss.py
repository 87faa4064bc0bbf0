"""What training makes smaller: cross entropy or focal loss, with weights for labels that have few rows."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


class LabelLoss:
    """The mean over texts of weight * (1 - p)^gamma * -log p, with p the probability of the true label.

    `gamma` 0 is cross entropy; above it, texts that are easy already count less (focal loss; Lin et al. 2017). `smoothing` is the
    share of the target that is spread over all labels. The weights are not divided by their sum in the batch, so that a text
    counts the same whatever labels stand beside it.
    """

    def __init__(self, smoothing: float = 0.0, weights: NDArray[np.float64] | None = None, gamma: float = 0.0) -> None:
        self._smoothing, self._gamma = smoothing, gamma
        self._weights = None if weights is None else torch.from_numpy(weights).float()

    def __call__(self, logits: Tensor, label_ids: Tensor) -> Tensor:
        losses = F.cross_entropy(logits, label_ids, reduction="none", label_smoothing=self._smoothing)  # (b,)
        if self._gamma:
            p = torch.exp(-F.cross_entropy(logits, label_ids, reduction="none"))
            losses = losses * (1 - p).clamp(min=torch.finfo(p.dtype).eps) ** self._gamma
        if self._weights is not None:
            losses = losses * self._weights.to(logits.device)[label_ids]
        return losses.mean()


def several_labels_loss(logits: Tensor, label_ids: Tensor) -> Tensor:
    """Where a text may have several labels, label_ids (b, c): the mean over texts of the sum over labels of each one's own."""
    losses = F.binary_cross_entropy_with_logits(logits, label_ids.to(logits.dtype), reduction="none")
    return losses.sum(dim=1).mean()
