import numpy as np
import pytest
from scipy.special import softmax

from pigeonhole.metrics import expected_calibration_error
from pigeonhole.training.calibration import fit_temperature


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_the_labels_were_drawn_with_is_found(temperature: float) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 3, (20_000, 5))
    drawn = [random.choice(5, p=row) for row in softmax(logits / temperature, axis=1)]
    assert fit_temperature(logits, np.array(drawn)) == pytest.approx(temperature, rel=0.05)


def test_calibrating_makes_confident_logits_honest() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (5_000, 4))
    labels = np.array([random.choice(4, p=row) for row in softmax(logits, axis=1)])
    overconfident = 4 * logits
    before = expected_calibration_error(softmax(overconfident, axis=1), labels)
    after = expected_calibration_error(softmax(overconfident / fit_temperature(overconfident, labels), axis=1), labels)
    assert after < 0.02 < 0.1 < before


def test_logits_that_are_always_right_stay_within_the_bounds() -> None:
    assert 0.05 <= fit_temperature(np.eye(3) * 5, np.arange(3)) <= 20
