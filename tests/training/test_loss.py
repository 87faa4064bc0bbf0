import pytest
import torch

from pigeonhole.training.loss import LabelLoss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_smoothing_spreads_a_share_of_the_target_over_all_labels(smoothing: float) -> None:
    logits, label_ids = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    logs = logits.log_softmax(dim=1)
    true = logs[torch.arange(2), label_ids]
    expected = -((1 - smoothing) * true + smoothing * logs.mean(dim=1)).mean()
    torch.testing.assert_close(LabelLoss(smoothing)(logits, label_ids), expected)


def test_what_is_easy_is_told_by_the_true_labels_probability_and_not_by_the_smoothed_target() -> None:
    logits, label_ids = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, 0.0]]), torch.tensor([0, 2])
    p = logits.softmax(dim=1)[torch.arange(2), label_ids]
    smoothed = torch.nn.functional.cross_entropy(logits, label_ids, reduction="none", label_smoothing=0.1)
    torch.testing.assert_close(LabelLoss(0.1, gamma=2.0)(logits, label_ids), ((1 - p) ** 2 * smoothed).mean())
