from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from pigeonhole.drift.detectors import (
    DETECTORS,
    Deals,
    Finding,
    Rows,
    centroid_distance,
    centroid_effect,
    detect,
    g_statistic,
    kolmogorov_smirnov,
    overall,
    rate_difference,
    total_variation,
)

MIXED = np.random.default_rng(7).normal(size=(16, 16))  # makes the sixteen numbers depend on each other


def rows(n: int, random: np.random.Generator, classes: int = 8) -> Rows:
    """Features as a served model gives them: correlated, and mostly without an unknown token."""
    n_words = random.poisson(18, n) + 1
    logits = random.normal(4, 1.5, n)
    return Rows(
        label_ids=random.integers(0, classes, n),
        scores=1 / (1 + np.exp(-logits + 2)),
        max_logits=logits,
        n_chars=n_words * 5 + random.integers(0, 5, n),
        n_words=n_words,
        n_tokens=n_words + 2,
        unknown_tokens=random.binomial(1, 0.01, n),
        sketches=random.normal(size=(n, 16)) @ MIXED + 3,
    )


def verdicts(findings: list[Finding]) -> dict[str, str]:
    return {finding.detector: finding.verdict for finding in findings}


def observed(m: int, n: int) -> Deals:
    return Deals((np.arange(m + n) < m)[None, :], m, n)


def test_kolmogorov_smirnov_is_that_of_scipy_with_and_without_ties() -> None:
    random = np.random.default_rng(1)
    for first, second in ((random.normal(size=60), random.normal(0.5, size=35)), (random.poisson(3, 60), random.poisson(4, 35))):
        expected = stats.ks_2samp(first, second).statistic
        assert kolmogorov_smirnov(np.concatenate([first, second]), observed(60, 35))[0] == pytest.approx(expected, abs=1e-12)


def test_g_statistic_is_that_of_scipy() -> None:
    ids = np.array([0, 0, 1, 2, 2, 2, 5, 0, 1, 1, 5, 5, 5])
    table = np.stack([np.bincount(ids[:7], minlength=6), np.bincount(ids[7:], minlength=6)])
    table = table[:, table.sum(axis=0) > 0]
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").statistic
    assert g_statistic(ids, observed(7, 6))[0] == pytest.approx(expected)


def test_rate_difference_weighs_each_text_by_its_tokens() -> None:
    assert rate_difference(np.array([1, 0, 3]), np.array([10, 10, 10]), observed(2, 1))[0] == pytest.approx(1 / 20 - 3 / 10)


def test_total_variation_is_the_share_that_moved() -> None:
    random = np.random.default_rng(0)
    first, second = rows(4, random), rows(4, random)
    first, second = replace(first, label_ids=np.array([0, 0, 1, 1])), replace(second, label_ids=np.array([0, 1, 1, 3]))
    assert total_variation(first, second) == 0.25


@pytest.mark.parametrize(("m", "n", "classes", "trials"), [(100, 40, 8, 200), (120, 30, 77, 60)])
def test_null_windows_alarm_no_more_often_than_the_budget(m: int, n: int, classes: int, trials: int) -> None:
    random = np.random.default_rng(3)
    alarms = sum(
        overall(detect(rows(m, random, classes), rows(n, random, classes), seed=trial)) == "drift" for trial in range(trials)
    )
    assert stats.binomtest(alarms, trials, 0.01, alternative="greater").pvalue > 0.01


def test_a_generous_budget_is_used_and_kept() -> None:
    random = np.random.default_rng(4)
    trials = 100
    alarms = sum(
        overall(detect(rows(60, random), rows(40, random), budget=0.2, seed=trial)) == "drift" for trial in range(trials)
    )
    assert 0.05 < alarms / trials < 0.2 + 3 * (0.2 * 0.8 / trials) ** 0.5


def planted(kind: str, n: int, random: np.random.Generator) -> Rows:
    found = rows(n, random)
    fewer = found.label_ids * (random.random(n) < 0.5)
    changed = {
        "confidence": lambda: replace(found, scores=found.scores**3),
        "predicted_classes": lambda: replace(found, label_ids=fewer),
        "n_chars": lambda: replace(found, n_chars=found.n_chars * 2),
        "n_words": lambda: replace(found, n_words=found.n_words // 2),
        "unknown_token_rate": lambda: replace(found, unknown_tokens=random.binomial(2, 0.3, n)),
        "max_logit": lambda: replace(found, max_logits=found.max_logits - 1.5),
        "estimated_accuracy": lambda: replace(found, scores=found.scores * 0.8),
        "embedding": lambda: replace(found, sketches=found.sketches + MIXED[0]),
    }
    return changed[kind]()


@pytest.mark.parametrize("kind", [detector.name for detector in DETECTORS])
def test_each_kind_of_change_is_found_by_its_detector_and_not_by_unrelated_ones(kind: str) -> None:
    random = np.random.default_rng(5)
    found = verdicts(detect(rows(300, random), planted(kind, 200, random)))
    assert found[kind] == "drift"
    related = {"confidence", "estimated_accuracy"} if kind in ("confidence", "estimated_accuracy") else {kind}
    assert {name for name, verdict in found.items() if verdict == "drift"} <= related


def test_a_client_that_sends_one_usual_text_over_and_over_is_drift() -> None:
    random = np.random.default_rng(12)
    reference = rows(300, random)
    assert overall(detect(reference, reference.take(np.full(100, 17)))) == "drift"


def test_figures_are_means_rates_and_the_largest_share() -> None:
    random = np.random.default_rng(13)
    few = replace(
        rows(4, random),
        label_ids=np.array([0, 2, 2, 1]),
        scores=np.array([0.5, 0.6, 0.7, 1.0]),
        n_words=np.array([1, 2, 3, 10]),
        n_tokens=np.array([3, 4, 5, 12]),
        unknown_tokens=np.array([0, 1, 0, 2]),
    )
    found = {finding.detector: finding for finding in detect(few, few, min_rows=2)}
    figures = ("confidence", "predicted_classes", "n_words", "unknown_token_rate", "estimated_accuracy")
    assert [found[name].reference for name in figures] == pytest.approx([0.7, 0.5, 4.0, 3 / 24, 0.7])
    assert [found[name].effect for name in figures] == [0.0] * 5


def test_higher_confidence_is_no_fall_of_accuracy() -> None:
    random = np.random.default_rng(6)
    window = rows(200, random)
    found = verdicts(detect(rows(300, random), replace(window, scores=np.ones(200))))
    assert (found["confidence"], found["estimated_accuracy"]) == ("drift", "no_drift")


def test_a_first_unknown_token_is_no_alarm() -> None:
    random = np.random.default_rng(7)
    reference, window = rows(288, random), rows(500, random)
    reference = replace(reference, unknown_tokens=np.zeros(288, np.int64))
    window = replace(window, unknown_tokens=(np.arange(500) < 1).astype(np.int64))
    assert verdicts(detect(reference, window))["unknown_token_rate"] == "no_drift"


def test_a_sure_but_small_difference_is_no_news() -> None:
    random = np.random.default_rng(8)
    window = rows(12_000, random)
    window = replace(window, max_logits=window.max_logits + 0.15)
    finding = next(each for each in detect(rows(4_000, random), window, budget=0.05) if each.detector == "max_logit")
    assert finding.p is not None
    assert finding.p <= 0.05
    assert finding.verdict == "no_drift"


@pytest.mark.parametrize(("m", "n"), [(300, 0), (300, 24), (24, 300)])
def test_too_few_rows_are_an_answer_without_figures(m: int, n: int) -> None:
    random = np.random.default_rng(9)
    findings = detect(rows(m, random), rows(n, random))
    assert overall(findings) == "too_few_rows"
    assert {(each.verdict, each.reference, each.window, each.p) for each in findings} == {("too_few_rows", None, None, None)}


def test_the_threshold_divides_what_alarms_from_what_does_not() -> None:
    random = np.random.default_rng(10)
    for kind in ("max_logit", "n_chars", "none"):
        window = rows(80, random) if kind == "none" else planted(kind, 80, random)
        for finding in detect(rows(150, random), window):
            assert finding.statistic is not None
            assert finding.threshold is not None
            assert finding.p is not None
            assert (finding.statistic >= finding.threshold) == (finding.p <= 0.01)


def test_the_same_seed_gives_the_same_findings() -> None:
    random = np.random.default_rng(11)
    reference, window = rows(50, random), rows(300, random)
    assert detect(reference, window, seed=2) == detect(reference, window, seed=2) != detect(reference, window, seed=3)


def test_centroid_distance_is_mahalanobis_by_the_pools_covariance() -> None:
    random = np.random.default_rng(3)
    pool = rows(80, random).sketches
    pool[50:] += 0.4
    apart = pool[:50].mean(axis=0) - pool[50:].mean(axis=0)
    expected = apart @ np.linalg.inv(np.cov(pool.T, bias=True)) @ apart
    assert centroid_distance(pool, observed(50, 30))[0] == pytest.approx(expected, rel=1e-6)


def test_sketches_that_never_vary_are_no_distance() -> None:
    assert centroid_distance(np.ones((20, 16)), observed(10, 10))[0] == 0


def test_the_effect_takes_off_what_chance_does_in_the_directions_that_vary() -> None:
    flat = np.zeros((200, 16))
    flat[:, 0] = np.where(np.arange(200) < 100, 0.0, 1.0) + np.tile([-1.0, 1.0], 100)
    before, after = (replace(rows(100, np.random.default_rng(6)), sketches=part) for part in (flat[:100], flat[100:]))
    spread = flat[:, 0].std()
    assert centroid_effect(before, after) == pytest.approx(np.sqrt(1 / spread**2 - (1 / 100 + 1 / 100)))


def test_another_subject_is_seen_in_the_sketches_alone() -> None:
    random = np.random.default_rng(4)
    window = rows(100, random)
    moved = replace(window, sketches=window.sketches + MIXED[0])
    found = {finding.detector: finding for finding in detect(rows(300, random), moved)}
    effect = found["embedding"].effect
    assert effect is not None
    assert 0.7 < effect < 1.2  # the mean was moved by one standard deviation of one direction


def test_rows_without_a_sketch_leave_that_detector_out_and_no_other() -> None:
    random = np.random.default_rng(5)
    window = rows(60, random)
    window.sketches[7] = np.nan
    named = [finding.detector for finding in detect(rows(100, random), window)]
    assert named == [detector.name for detector in DETECTORS if detector.name != "embedding"]
