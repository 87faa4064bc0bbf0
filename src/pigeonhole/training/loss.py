"""What training makes smaller."""

from functools import partial

from torch.nn import functional as F

from pigeonhole.training.trainer import Criterion


def make_criterion(label_smoothing: float) -> Criterion:
    return partial(F.cross_entropy, label_smoothing=label_smoothing)
