import pytest
import torch

from pigeonhole.training.optim import AVERAGE_EVERY, Average


def averaged(decay: float, steps: int) -> float:
    """Of a weight that is 100 at the beginning and has the number of the step after each."""
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(100)
        average = Average(model, decay)
        for step in range(1, steps + 1):
            model.weight.fill_(step)
            average.update(step)
        with average.applied():
            return float(model.weight)


@pytest.mark.parametrize("steps", range(1, AVERAGE_EVERY))
def test_a_run_of_hardly_a_step_leaves_with_what_it_learned(steps: int) -> None:
    assert averaged(0.995, steps) == steps


def test_the_weights_of_the_beginning_have_no_share_in_the_average() -> None:
    assert averaged(0.995, 12) == pytest.approx((4 + 8 + 12) / 3)


def test_a_long_run_forgets_by_its_decay() -> None:
    share = 1 - 0.9**AVERAGE_EVERY  # from the third one on it is more than a mean gives
    assert averaged(0.9, 12) == pytest.approx(6 + share * (12 - 6))


def test_without_a_decay_what_is_trained_is_what_leaves() -> None:
    assert averaged(0.0, 9) == 9
