import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from pigeonhole.classifier import Prediction
from pigeonhole.decision import Decision
from pigeonhole.evaluation.decisions import auroc, score_decisions


def decided(decision: Decision) -> Prediction:
    """All else is nothing that the decisions are counted by."""
    return Prediction(
        label="a",
        label_id=0,
        labels=("a",),
        score=0.5,
        decision=decision,
        probabilities=np.array([0.5, 0.5]),
        ranked=np.array([0, 1]),
        logits=np.zeros(2, np.float32),
        embedding=np.zeros(2, np.float32),
        n_tokens=1,
        unknown_tokens=0,
        truncated=False,
    )


def test_what_is_accepted_is_measured_by_itself_and_a_refused_row_is_no_right_answer() -> None:
    decided_rows = [decided("accept")] * 4 + [decided("review")] * 4 + [decided("out_of_scope")] * 2
    right = np.array([True, True, True, False, True, False, False, False, True, False])
    found = score_decisions(right, decided_rows)
    shares = {name: (part["share"], part["n"]) for name, part in found.items() if name != "n"}
    assert shares == {"accepted": (0.4, 10), "precision": (0.75, 4), "out_of_scope": (0.2, 10), "accuracy_in_scope": (0.4, 10)}


def test_precision_of_nothing_accepted_is_unknown() -> None:
    found = score_decisions(np.array([True]), [decided("review")])["precision"]
    assert (found["n"], found["interval"]) == (0, [0.0, 1.0])


def test_the_area_under_the_curve_is_that_of_scikit_learn_ties_included() -> None:
    random = np.random.default_rng(0)
    inside, outside = random.normal(0, 1, 60).round(1), random.normal(1, 1, 40).round(1)
    expected = roc_auc_score([0] * 60 + [1] * 40, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected)
