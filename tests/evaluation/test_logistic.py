import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_info, threadpool_limits

from pigeonhole.evaluation.logistic import fit_logistic

DRAW = np.random.default_rng(0)
FEATURES = DRAW.normal(size=(60, 5))
LABEL_IDS = (FEATURES[:, 0] + FEATURES[:, 1] > 0.5).astype(np.int64)


@pytest.mark.parametrize("balanced", [False, True])
def test_it_is_scikit_learns_own_regression(balanced: bool) -> None:
    theirs = LogisticRegression(C=3.0, tol=1e-3, max_iter=1_000, class_weight="balanced" if balanced else None)
    ours = fit_logistic(FEATURES, LABEL_IDS, 3.0, tolerance=1e-3, balanced=balanced)
    np.testing.assert_allclose(ours.coef_, theirs.fit(FEATURES, LABEL_IDS).coef_, rtol=1e-9)


def test_it_is_fitted_on_one_thread_of_the_blas_which_has_all_of_its_own_again_after_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def threads() -> set[int]:
        return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

    seen: list[set[int]] = []
    monkeypatch.setattr(LogisticRegression, "fit", lambda self, features, label_ids: seen.append(threads()))
    with threadpool_limits(2, "blas"):
        fit_logistic(FEATURES, LABEL_IDS, 1.0)
        assert seen == [{1}]
        assert threads() == {2}
