"""What the decisions are worth: the precision of what is accepted, and how well texts that belong to no label are told apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from pigeonhole.bundle import OutOfScopeRule
from pigeonhole.classifier import Prediction
from pigeonhole.decision import strangeness
from pigeonhole.metrics import Floats, wilson_interval


def score_decisions(right: NDArray[np.bool_], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Of rows that all have a label: how many get which decision, and how many of those accepted are right."""
    decisions = np.array([found.decision for found in predictions])
    accepted, refused = decisions == "accept", decisions == "out_of_scope"
    return {
        "n": len(decisions),
        "accepted": _share(int(accepted.sum()), len(decisions)),
        "precision": _share(int(right[accepted].sum()), int(accepted.sum())),
        "out_of_scope": _share(int(refused.sum()), len(decisions)),
        "accuracy_in_scope": _share(int((right & ~refused).sum()), len(decisions)),
    }


def score_out_of_scope(
    rule: OutOfScopeRule, inside: Sequence[Prediction], outside: Sequence[Prediction], neighbours: NDArray[np.float32] | None
) -> dict[str, Any]:
    """Of texts that belong to no label: how many are recognised, and how many are accepted."""
    decisions = [found.decision for found in outside]
    return {
        "n": len(outside),
        "auroc": auroc(strange(rule, inside, neighbours), strange(rule, outside, neighbours)),
        "recall": _share(decisions.count("out_of_scope"), len(outside)),
        "accepted": _share(decisions.count("accept"), len(outside)),
    }


def strange(rule: OutOfScopeRule, predictions: Sequence[Prediction], neighbours: NDArray[np.float32] | None) -> Floats:
    return np.array([strangeness(rule, found.logits, found.embedding, neighbours) for found in predictions])


def auroc(inside: Floats, outside: Floats) -> float:
    """The probability that a text outside is stranger than one inside (Mann-Whitney)."""
    ranks = rankdata(np.concatenate([inside, outside]))[len(inside) :]
    return float((ranks.sum() - len(outside) * (len(outside) + 1) / 2) / (len(inside) * len(outside)))


def _share(hits: int, n: int) -> dict[str, Any]:
    found = wilson_interval(hits, n)
    return {"share": found.estimate, "interval": [found.low, found.high], "n": n}
