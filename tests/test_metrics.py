from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics
from sklearn.calibration import calibration_curve

from pigeonhole import metrics
from pigeonhole.metrics import Floats, Ids, Interval


def simulate(n: int, c: int, skill: float, seed: int) -> tuple[Ids, Floats]:
    """Labels and the probabilities of a model that knows more of them the larger `skill` is."""
    random = np.random.default_rng(seed)
    true_ids = random.integers(0, c, n)
    logits = random.normal(size=(n, c))
    logits[np.arange(n), true_ids] += skill
    powers = np.exp(logits)
    return true_ids, powers / powers.sum(axis=1, keepdims=True)


SIZES = [(2, 3, 0.0), (40, 3, 1.0), (500, 8, 2.0), (1_000, 77, 4.0)]


@pytest.mark.parametrize(("n", "c", "skill"), SIZES)
def test_accuracy_and_macro_f1_are_those_of_scikit_learn(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    predicted_ids = metrics.predict(probabilities)
    assert metrics.accuracy(true_ids, predicted_ids) == pytest.approx(sklearn_metrics.accuracy_score(true_ids, predicted_ids))
    expected = sklearn_metrics.f1_score(true_ids, predicted_ids, average="macro", zero_division=0)
    assert metrics.macro_f1(true_ids, predicted_ids) == pytest.approx(expected)


def test_macro_f1_leaves_out_labels_that_nobody_mentions() -> None:
    assert metrics.macro_f1(np.array([0, 9]), np.array([0, 9])) == 1


def test_a_stray_label_is_one_mistake_for_models_that_are_compared() -> None:
    true_ids, predicted_ids = np.repeat([0, 1], 10), np.array([2] + [0] * 9 + [1] * 10)
    expected = sklearn_metrics.f1_score(true_ids, predicted_ids, labels=[0, 1], average="macro")
    assert metrics.macro_f1_of_true_labels(true_ids, predicted_ids) == pytest.approx(expected)
    assert metrics.macro_f1(true_ids, predicted_ids) == pytest.approx(expected * 2 / 3)


@pytest.mark.parametrize(("n", "c", "skill"), SIZES)
def test_per_class_figures_are_those_of_scikit_learn(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    predicted_ids = metrics.predict(probabilities)
    found = metrics.per_class(true_ids, predicted_ids, [f"label {i}" for i in range(c)])
    expected = sklearn_metrics.precision_recall_fscore_support(true_ids, predicted_ids, labels=range(c), zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        np.testing.assert_allclose([score[name] for score in found.values()], values)


def test_per_class_intervals_hold_their_figures_and_stay_open_for_a_dozen_right_answers() -> None:
    true_ids = np.repeat([0, 1, 2], 12)
    predicted_ids = true_ids.copy()
    predicted_ids[12:15] = 2
    for score in metrics.per_class(true_ids, predicted_ids, ["a", "b", "c"]).values():
        for name, (low, high) in score["intervals"].items():
            assert 0 <= low <= score[name] <= high <= 1
            assert low < 0.9


@pytest.mark.parametrize(("n", "c", "skill"), SIZES)
def test_confusion_matrix_is_that_of_scikit_learn(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    predicted_ids = metrics.predict(probabilities)
    expected = sklearn_metrics.confusion_matrix(true_ids, predicted_ids, labels=range(c))
    np.testing.assert_array_equal(metrics.confusion_matrix(true_ids, predicted_ids, c), expected)


@pytest.mark.parametrize(("n", "c", "skill"), SIZES)
def test_proper_scores_are_those_of_scikit_learn(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    expected = sklearn_metrics.log_loss(true_ids, probabilities, labels=list(range(c)))
    assert metrics.negative_log_likelihood(probabilities, true_ids) == pytest.approx(expected)
    expected = sklearn_metrics.brier_score_loss(true_ids, probabilities, labels=list(range(c)), scale_by_half=False)
    assert metrics.brier_score(probabilities, true_ids) == pytest.approx(expected)


def test_a_certain_wrong_answer_costs_much_but_not_infinity() -> None:
    certain = np.array([[1.0, 0.0]])
    assert 700 < metrics.negative_log_likelihood(certain, np.array([1])) < 710
    assert metrics.brier_score(certain, np.array([1])) == 2


@pytest.mark.parametrize(("n", "c", "skill"), SIZES)
def test_reliability_bins_are_those_of_scikit_learn(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    right = metrics.predict(probabilities) == true_ids
    accuracies, confidences = calibration_curve(right, probabilities.max(axis=1), n_bins=15)
    found = metrics.reliability(probabilities, true_ids)
    filled = found.counts > 0
    np.testing.assert_array_equal(found.edges, np.arange(16) / 15)
    np.testing.assert_allclose(found.accuracy[filled], accuracies)
    np.testing.assert_allclose(found.confidence[filled], confidences)
    expected = np.average(np.abs(accuracies - confidences), weights=found.counts[filled])
    assert metrics.expected_calibration_error(probabilities, true_ids) == pytest.approx(expected)


def test_calibration_error_of_a_hand_made_example() -> None:
    # Four answers at 0.9, three of them right; two at 0.6, none right: (4 · |0.75 - 0.9| + 2 · |0 - 0.6|) / 6 = 0.3
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 2)
    assert metrics.expected_calibration_error(probabilities, np.array([0, 0, 0, 1, 1, 1])) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (20, 20, 0.8389, 1.0)],
)
def test_wilson_interval_is_that_of_newcombe_1998_table_1(successes: int, trials: int, low: float, high: float) -> None:
    found = metrics.wilson_interval(successes, trials)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert found.estimate == successes / trials


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926)],
)
def test_the_difference_of_two_shares_is_that_of_newcombe_1998_table_2(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    found = metrics.wilson_difference(metrics.wilson_interval(*first), metrics.wilson_interval(*second))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_of_no_trials_knows_nothing() -> None:
    assert metrics.wilson_interval(0, 0) == Interval(0, 0, 1)


def test_f1_interval_is_centred_on_the_f1_of_its_counts() -> None:
    found = metrics.f1_interval(hits=9, support=10, predicted=12)
    assert found.estimate == pytest.approx(18 / 22)
    assert found.low < 18 / 22 < found.high


def drawn_one_by_one(true_ids: Ids, first_ids: Ids, second_ids: Ids, resamples: int) -> Floats:
    """Differences of macro-F1 as the textbook has them: gather n rows with replacement, measure, repeat."""
    random = np.random.default_rng(99)
    differences = []
    for _ in range(resamples):
        rows = random.integers(0, len(true_ids), len(true_ids))
        first, second = (
            sklearn_metrics.f1_score(true_ids[rows], found[rows], average="macro", zero_division=0)
            for found in (first_ids, second_ids)
        )
        differences.append(first - second)
    return np.array(differences)


def test_vectorised_bootstrap_draws_from_the_distribution_of_the_textbook_loop() -> None:
    true_ids, probabilities = simulate(200, 5, 1.5, seed=3)
    first_ids, second_ids = metrics.predict(probabilities), metrics.predict(simulate(200, 5, 1.0, seed=3)[1])
    expected = drawn_one_by_one(true_ids, first_ids, second_ids, resamples=600)
    found = metrics.bootstrap_difference(true_ids, first_ids, second_ids, resamples=20_000)
    low, high = np.quantile(expected, [0.025, 0.975]) - (expected.mean() - found.estimate)
    assert found.low == pytest.approx(low, abs=0.02)
    assert found.high == pytest.approx(high, abs=0.02)


@pytest.mark.parametrize(("n", "c", "skill"), SIZES[1:])
def test_bootstrap_intervals_hold_the_figures_they_belong_to(n: int, c: int, skill: float) -> None:
    true_ids, probabilities = simulate(n, c, skill, seed=n)
    found = metrics.bootstrap_macro_f1(true_ids, metrics.predict(probabilities))
    assert 0 <= found.low < found.estimate < found.high <= 1
    found = metrics.bootstrap_calibration_error(probabilities, true_ids)
    assert 0 <= found.low < found.estimate < found.high <= 1


def test_intervals_hold_the_true_value_in_about_95_of_100_samples() -> None:
    population_ids, population = simulate(200_000, 8, 2.5, seed=0)
    true_f1 = metrics.macro_f1(population_ids, metrics.predict(population))
    true_error = metrics.expected_calibration_error(population, population_ids)
    held = np.zeros(2)
    for seed in range(1, 201):
        true_ids, probabilities = simulate(200, 8, 2.5, seed=seed)
        score = metrics.bootstrap_macro_f1(true_ids, metrics.predict(probabilities), resamples=300)
        error = metrics.bootstrap_calibration_error(probabilities, true_ids, resamples=300)
        held += [score.low <= true_f1 <= score.high, error.low <= true_error <= error.high]
    assert (held >= 0.9 * 200).all()


def test_faultless_answers_to_a_few_rows_are_no_proof_of_a_faultless_model() -> None:
    found = metrics.bootstrap_macro_f1(np.arange(20), np.arange(20))
    assert (found.estimate, found.low, found.high) == pytest.approx((1, 0.8389, 1), abs=5e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_a_few_rows_that_all_say_the_same_prove_nothing(n: int) -> None:
    zeros, ones, sure = np.zeros(n, np.int64), np.ones(n, np.int64), np.tile([1.0, 0.0], (n, 1))
    wrong, sets = metrics.wilson_interval(0, n), np.tile([1, 0], (n, 1))
    assert metrics.bootstrap_macro_f1(zeros, ones) == wrong
    assert metrics.bootstrap_micro_f1(sets, 1 - sets) == wrong
    assert metrics.bootstrap_mean_average_precision(sets, sure) == metrics.wilson_interval(n, n)
    assert metrics.bootstrap_calibration_error(sure, zeros) == wrong  # all right, and called certain
    assert metrics.bootstrap_calibration_error(sure, ones) == metrics.wilson_interval(n, n)


@pytest.mark.parametrize(("won", "certain"), [(1, False), (3, False), (8, True)])
def test_a_few_rows_that_are_all_won_are_no_certain_difference_of_f1(won: int, certain: bool) -> None:
    true_ids = np.arange(won)
    found = metrics.bootstrap_difference(true_ids, true_ids, (true_ids + 1) % (won + 1))
    assert found.estimate == found.high == 1
    assert (found.low > 0) == certain


TRUE, SURE = simulate(80, 5, 1.0, seed=1)
FIRST, SECOND = metrics.predict(SURE), metrics.predict(simulate(80, 5, 1.0, seed=2)[1])
SETS = np.eye(5, dtype=np.int64)[TRUE]  # a text has one of its labels, all the same
OF_A_SEED: dict[str, Callable[[int], Interval]] = {
    "macro-F1": lambda seed: metrics.bootstrap_macro_f1(TRUE, FIRST, seed),
    "calibration": lambda seed: metrics.bootstrap_calibration_error(SURE, TRUE, seed=seed),
    "difference": lambda seed: metrics.bootstrap_difference(TRUE, FIRST, SECOND, seed),
    "share": lambda seed: metrics.bootstrap_share_difference(FIRST == TRUE, SECOND == TRUE, seed),
    "macro-F1 of sets": lambda seed: metrics.bootstrap_macro_f1(SETS, metrics.predict(SURE, np.full(5, 0.4)), seed),
    "micro-F1": lambda seed: metrics.bootstrap_micro_f1(SETS, metrics.predict(SURE, np.full(5, 0.4)), seed),
    "precision": lambda seed: metrics.bootstrap_mean_average_precision(SETS, SURE, seed),
    "calibration of sets": lambda seed: metrics.bootstrap_calibration_error(SURE, SETS, seed=seed),
}


@pytest.mark.parametrize("name", OF_A_SEED)
def test_same_seed_gives_the_same_interval_and_another_seed_another_one(name: str) -> None:
    first, again, other = (OF_A_SEED[name](seed) for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("several", [False, True])
def test_the_seed_of_a_report_reaches_each_of_its_intervals(several: bool) -> None:
    true_ids, thresholds = (SETS, np.full(5, 0.4)) if several else (TRUE, None)
    first, other = (metrics.score_metrics(true_ids, SURE, list("abcde"), seed, thresholds)["intervals"] for seed in (1, 2))
    assert {name for name in first if first[name] == other[name]} == {"accuracy"}  # Wilson's draws nothing


def test_a_difference_of_f1_holds_95_of_100_draws() -> None:
    """Of one label, F1 is 2h / (n + h) for h rows that are right, and h of a resample is binomial."""
    true_ids, all_right = np.zeros(400, np.int64), np.zeros(400, np.int64)
    found = metrics.bootstrap_difference(true_ids, (np.arange(400) < 80).astype(np.int64), all_right, resamples=40_000)
    low, high = stats.binom.ppf([0.025, 0.975], 400, 0.8)
    assert (found.low, found.high) == pytest.approx((2 * low / (400 + low) - 1, 2 * high / (400 + high) - 1), abs=0.0025)


def test_a_difference_of_shares_is_bonetts_and_prices_adjusted_wald_interval() -> None:
    rows = np.arange(400)
    found = metrics.bootstrap_share_difference(rows < 80, (rows >= 80) & (rows < 120), resamples=40_000)
    won, lost = 81 / 402, 41 / 402
    half = 1.96 * np.sqrt((won + lost - (won - lost) ** 2) / 402)
    assert (found.low, found.high) == pytest.approx((won - lost - half, won - lost + half), abs=0.003)


def test_resampling_in_blocks_gives_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    true_ids, probabilities = simulate(300, 5, 1.0, seed=1)
    whole = metrics.score_metrics(true_ids, probabilities, list("abcde"))
    monkeypatch.setattr(metrics, "BLOCK", 5_000)
    assert metrics.score_metrics(true_ids, probabilities, list("abcde"))["intervals"] == whole["intervals"]


def test_difference_of_a_prediction_with_itself_is_nothing() -> None:
    true_ids, probabilities = simulate(300, 5, 1.0, seed=1)
    predicted_ids = metrics.predict(probabilities)
    assert metrics.bootstrap_difference(true_ids, predicted_ids, predicted_ids) == Interval(0, 0, 0)


def test_difference_turns_its_sign_when_the_arguments_are_swapped() -> None:
    true_ids, probabilities = simulate(500, 5, 2.0, seed=1)
    worse = metrics.predict(simulate(500, 5, 1.0, seed=1)[1])
    better = metrics.predict(probabilities)
    found = metrics.bootstrap_difference(true_ids, better, worse)
    swapped = metrics.bootstrap_difference(true_ids, worse, better)
    assert found.low > 0
    assert swapped.high < 0
    assert (swapped.estimate, swapped.low, swapped.high) == pytest.approx((-found.estimate, -found.high, -found.low), abs=0.005)


def test_pairing_makes_the_difference_of_like_predictions_narrow() -> None:
    true_ids, probabilities = simulate(500, 5, 1.0, seed=1)
    first_ids = metrics.predict(probabilities)
    second_ids = first_ids.copy()
    second_ids[:5] = 0
    difference = metrics.bootstrap_difference(true_ids, first_ids, second_ids)
    alone = metrics.bootstrap_macro_f1(true_ids, first_ids)
    assert difference.high - difference.low < 0.3 * (alone.high - alone.low)


def test_score_metrics_names_every_figure_once_and_survives_json() -> None:
    import msgspec

    true_ids, probabilities = simulate(60, 3, 1.0, seed=1)
    found = metrics.score_metrics(true_ids, probabilities, ["a", "b", "c"])
    assert list(found) == ["accuracy", "macro_f1", "ece", "negative_log_likelihood", "brier", "n", "intervals", "per_class"]
    assert found["n"] == 60
    assert list(found["intervals"]) == ["accuracy", "macro_f1", "ece"]
    assert msgspec.json.decode(msgspec.json.encode(found)) == found


def test_a_set_without_any_right_answer_is_measured_too() -> None:
    true_ids = np.array([0, 1, 2, 0])
    probabilities = np.eye(3)[[1, 2, 0, 1]]
    found = metrics.score_metrics(true_ids, probabilities, ["a", "b", "c"])
    assert (found["accuracy"], found["macro_f1"], found["ece"]) == (0, 0, 1)


def test_probabilities_that_are_not_numbers_are_never_measured() -> None:
    with pytest.raises(AssertionError):
        metrics.score_metrics(np.array([0]), np.array([[np.nan, 1.0]]), ["a", "b"])


def test_a_paired_difference_of_shares_is_that_of_the_pairs_that_differ() -> None:
    first, second = np.arange(100) < 60, np.arange(100) < 50
    found = metrics.bootstrap_share_difference(first, second)
    assert found.estimate == pytest.approx(0.1)
    half = 1.96 * np.sqrt(0.1 * 0.9 / 100)  # ten pairs of a hundred differ, all in one direction
    assert (found.low, found.high) == pytest.approx((0.1 - half, 0.1 + half), abs=0.012)
    same = metrics.bootstrap_share_difference(first, first)
    assert same.estimate == 0
    assert -0.04 <= same.low < 0 < same.high <= 0.04  # as many as 3 of 100 may differ where none of 100 does


@pytest.mark.parametrize(("lost", "certain"), [(1, False), (3, False), (8, True)])
def test_a_handful_of_pairs_that_all_go_one_way_is_certain_only_where_a_sign_test_says_so(lost: int, certain: bool) -> None:
    found = metrics.bootstrap_share_difference(np.zeros(lost, bool), np.ones(lost, bool))
    assert found.estimate == found.low == -1
    assert (found.high < 0) == certain == (2 * 0.5**lost < 0.05)


def test_the_interval_of_a_median_holds_it_in_95_of_100_sets() -> None:
    random = np.random.default_rng(0)
    held = sum(
        (found := metrics.median_interval(random.exponential(size=100))).low <= np.log(2) <= found.high for _ in range(1_000)
    )
    assert 930 <= held <= 985
    assert metrics.median_interval(np.arange(100.0)) == Interval(49.5, 40, 60)
    assert metrics.median_interval(np.arange(2.0)) == Interval(0.5, 0, 1)


def test_a_bootstrap_interval_is_shifted_back_by_the_bootstraps_own_bias() -> None:
    drawn = np.linspace(0.3, 0.5, 10_001)  # around 0.4, where the figure itself is 0.5
    found = metrics._shifted_interval(0.5, drawn, 100)
    assert [found.estimate, found.low, found.high] == pytest.approx([0.5, 0.405, 0.595])
    assert metrics._shifted_interval(0.98, drawn, 100).high == 1


def test_the_lower_end_of_a_calibration_interval_is_shifted_twice_and_never_up() -> None:
    for middle, low, high in ((0.6, 0.305, 0.595), (0.4, 0.305, 0.595)):
        found = metrics._gap_interval(0.5, np.linspace(middle - 0.1, middle + 0.1, 10_001), 100)
        assert [found.estimate, found.low, found.high] == pytest.approx([0.5, low, high])
    assert metrics._gap_interval(0.05, np.linspace(0.05, 0.25, 10_001), 100).low == 0


def test_the_calibration_interval_of_few_rows_seldom_begins_above_the_true_error() -> None:
    """The rows' own noise raises the error: shifted back once, the interval began above 0.024 in half of such sets."""
    random = np.random.default_rng(5)
    too_high = 0
    for seed in range(60):
        confidence = random.beta(8, 2, 200).clip(0.5, 0.999)
        true_ids = (random.random(200) >= 0.97 * confidence).astype(np.int64)  # 3 % too sure
        found = metrics.bootstrap_calibration_error(np.stack([confidence, 1 - confidence], axis=1), true_ids, 15, seed, 300)
        too_high += found.low > 0.024
        assert found.low <= found.estimate <= found.high
    assert too_high <= 12
