import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import expit, log_softmax, softmax

from pigeonhole.metrics import expected_calibration_error
from pigeonhole.training.calibration import _fit_vector, calibrate, calibrate_labels, fit_label_thresholds, fit_temperature


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


@pytest.mark.parametrize("n", [20, 80, 300])
def test_rows_that_are_all_right_do_not_promise_that_no_answer_is_wrong(n: int) -> None:
    logits, label_ids = np.eye(3)[np.arange(n) % 3] * 12, np.arange(n) % 3
    scores = softmax(logits / fit_temperature(logits, label_ids), axis=1).max(axis=1)
    assert 1 - scores.mean() == pytest.approx(1 / (n + 1), rel=0.5)  # the rule of succession, and the third label's share


def test_the_same_for_sigmoids() -> None:
    label_ids = np.random.default_rng(0).integers(0, 2, (40, 5))
    logits = 24.0 * label_ids - 12
    scores = expit(np.abs(logits) / fit_temperature(logits, label_ids))
    assert 1 - scores.mean() == pytest.approx(1 / 201, rel=0.01)


def test_thresholds_of_several_labels_are_fitted_on_what_the_temperature_makes_of_logits() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(500, 3)) * 2
    label_ids = (random.uniform(size=(500, 3)) < expit(logits)).astype(np.int64)
    found = calibrate_labels(4 * logits, label_ids)
    assert found.temperature == pytest.approx(4, rel=0.2)
    assert found.held_out == pytest.approx(expit(4 * logits / found.temperature))
    right = np.where(label_ids == 1, found.held_out, 1 - found.held_out)
    assert found.nll_temperature == pytest.approx(-np.log(right).sum(axis=1).mean())


def drawn(n: int, scale: list[float], bias: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn by what they mean under a scale and a bias for each label."""
    random = np.random.default_rng(1)
    logits = random.normal(size=(n, 4)) * 3
    meant = softmax(logits * np.array(scale) + np.array(bias), axis=1)
    return logits, np.array([random.choice(4, p=row) for row in meant])


def test_a_vector_wins_where_labels_are_wrong_each_in_its_own_way() -> None:
    scale, bias = [0.4, 1.0, 1.6, 1.0], [0.5, -1.5, 0.0, 1.0]
    logits, label_ids = drawn(3000, scale, bias)
    found = calibrate(logits, label_ids, seed=0)
    assert found.vector is not None
    assert found.nll_vector < found.nll_temperature
    assert found.vector.scale == pytest.approx(scale, abs=0.15)
    assert np.array(found.vector.bias) - np.mean(found.vector.bias) == pytest.approx(np.array(bias) - np.mean(bias), abs=0.25)
    assert np.array([*found.vector.scale, *found.vector.bias]) == pytest.approx(
        np.concatenate(_fit_vector(logits, label_ids, found.temperature))
    )
    assert found.held_out.sum(axis=1) == pytest.approx(np.ones(3000))
    assert -np.log(found.held_out[np.arange(3000), label_ids]).mean() == pytest.approx(found.nll_vector)


def test_scale_and_bias_are_where_the_penalised_likelihood_has_no_slope() -> None:
    """Rows and 1 / n of a wrong one each, and a pull of one row towards the temperature; slopes by differences."""
    logits, label_ids = drawn(40, [0.4, 1.0, 1.6, 1.0], [0.5, -1.5, 0.0, 1.0])
    scale, bias = _fit_vector(logits, label_ids, 1.5)
    others = np.where(np.eye(4)[label_ids] == 1, -np.inf, logits).argmax(axis=1)

    def loss(parameters: np.ndarray) -> float:
        likelihood = log_softmax(logits / 1.5 * parameters[:4] + parameters[4:], axis=1)
        fit = likelihood[np.arange(40), label_ids].sum() + likelihood[np.arange(40), others].mean()
        return float(-fit + ((parameters[:4] - 1) ** 2).sum() + (parameters[4:] ** 2).sum())

    slopes = approx_fprime(np.concatenate([scale * 1.5, bias]), loss, 1e-6)
    assert slopes == pytest.approx(np.zeros(8), abs=0.01)


def test_no_vector_takes_back_that_labels_were_made_to_weigh_alike() -> None:
    assert calibrate(*drawn(1000, [0.4, 1.0, 1.6, 1.0], [0.5, -1.5, 0.0, 1.0]), seed=0).vector is not None
    found = calibrate(*drawn(1000, [0.4, 1.0, 1.6, 1.0], [0.5, -1.5, 0.0, 1.0]), seed=0, by_label=False)
    assert found.vector is None
    assert found.held_out.max(axis=1).mean() > 0.5


def test_the_temperature_alone_stays_where_a_vector_gains_nothing() -> None:
    found = calibrate(*drawn(300, [0.7] * 4, [0.0] * 4), seed=0)
    assert found.vector is None
    assert found.temperature == pytest.approx(1 / 0.7, rel=0.15)


def test_a_vector_does_not_win_by_promising_more_on_rows_that_are_all_right() -> None:
    label_ids = np.arange(60) % 3
    found = calibrate(np.eye(3)[label_ids] * 8 + np.random.default_rng(0).normal(size=(60, 3)) / 2, label_ids, seed=0)
    assert found.vector is None
    assert 1 - found.held_out.max(axis=1).mean() == pytest.approx(1 / 49, rel=0.1)  # each by a fit on 48 rows


@pytest.mark.parametrize("label_id", [0, 1])
def test_of_a_single_row_the_temperature_is_all_that_is_fitted(label_id: int) -> None:
    logits, label_ids = np.array([[2.0, 0.0, -1.0]]), np.array([label_id])
    found = calibrate(logits, label_ids, seed=0)
    assert (found.vector, found.temperature) == (None, fit_temperature(logits, label_ids))
    assert found.held_out == pytest.approx(softmax(logits / found.temperature, axis=1))


def test_of_equally_good_thresholds_the_nearest_to_a_half_is_taken() -> None:
    """The first label has an F1 of 2/3 above 0.85 and above nothing; no row has the second one."""
    probabilities = np.array([[0.9, 0.9], [0.85, 0.8], [0.8, 0.2], [0.6, 0.1]])
    assert fit_label_thresholds(probabilities, np.array([[1, 0], [0, 0], [0, 0], [1, 0]])).tolist() == [0.5, 0.5]
    found = fit_label_thresholds(np.array([[0.6], [0.3], [0.2], [0.1]]), np.array([[1], [0], [0], [1]]))
    assert found.tolist() == [0.5]


def test_rows_with_one_probability_are_given_a_label_together() -> None:
    """Two rows at 0.9, of which one has the label: no threshold gives it to that one alone."""
    assert fit_label_thresholds(np.array([[0.9], [0.9], [0.2]]), np.array([[1], [0], [0]])).tolist() == [0.5]


def test_a_label_with_few_rows_stays_near_the_temperature() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 3)) * 2
    label_ids = np.array([random.choice(3, p=row) for row in softmax(logits, axis=1)])
    kept = np.setdiff1d(np.arange(400), np.flatnonzero(label_ids == 2)[2:])  # two rows are left of label 2
    _, bias = _fit_vector(logits[kept], label_ids[kept], 1.0)
    assert -2.1 < bias[2] < -1.5  # it is rarer than it says; without the pull it would be at -2.5
