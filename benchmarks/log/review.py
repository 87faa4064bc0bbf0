"""Is the review queue's estimate unbiased, and does its interval hold what it should? Simulated worlds, where the truth is known.

    uv run python benchmarks/log/review.py [audit_share=0.02] [worlds=500]

1,500 predictions a world; the model is right as often as it says, but 0.1 less: in 65 of 100. Reviewers stop after 150 answers.
"""

import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pigeonhole.command import command, with_help
from pigeonhole.drift.review import Judged, estimate, is_drawn, order_of, probability_drawn
from pigeonhole.options import read_options, setting
from pigeonhole.prediction_log import Features, Record, new_id

TRUTH = 0.65


@dataclass(frozen=True)
class Options:
    audit_share: float = setting(0.02, "of all predictions, drawn whatever the model thinks of them", gt=0, le=1)
    worlds: int = setting(500, "that are simulated", ge=1)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> Any:
    options = read_options(Options, arguments)
    return measure(options.audit_share, options.worlds)


@dataclass(frozen=True)
class Found:
    """Over all worlds."""

    estimate: float
    standard_error: float
    spread: float  # one world's standard deviation
    plain_share: float  # of right answers among the judged, not weighed
    covered: float  # share of the 95 % intervals that hold the truth
    effective_n: float


def with_score(score: float, prediction_id: str = "") -> Record:
    """Of two labels, the likelier one."""
    return Record(
        prediction_id=prediction_id or new_id(),
        at=datetime.now(UTC),
        request_id="r",
        model="m",
        version="v",
        text=None,
        text_policy="none",
        features=Features(n_chars=1, n_words=1, n_tokens=1, unknown_tokens=0, truncated=False, max_logit=1.0),
        label="a",
        score=score,
        probabilities={"a": score, "b": 1 - score},
        decision="accept",
        latency_ms=1.0,
    )


def judged_world(draw: random.Random, audit_share: float) -> list[Judged]:
    # A record is drawn by its id.
    records = [with_score(draw.uniform(0.5, 1.0), f"{draw.getrandbits(128):032x}") for _ in range(1500)]
    truths = {record.prediction_id: "a" if draw.random() < record.score - 0.1 else "b" for record in records}
    drawn = sorted((record for record in records if is_drawn(record, audit_share)), key=order_of)
    return [
        Judged(each.given, frozenset(truths[each.prediction_id]), probability_drawn(each, audit_share)) for each in drawn[:150]
    ]


def measure(audit_share: float, worlds: int, seed: int = 7) -> Found:
    draw = random.Random(seed)
    judged = [judged_world(draw, audit_share) for _ in range(worlds)]
    found = [estimate(each) for each in judged]
    estimates = np.array([each["accuracy"] for each in found])
    return Found(
        estimate=float(estimates.mean()),
        standard_error=float(estimates.std() / worlds**0.5),
        spread=float(estimates.std()),
        plain_share=float(np.mean([np.mean([each.predicted == each.true for each in world]) for world in judged])),
        covered=float(np.mean([each["interval"][0] <= TRUTH <= each["interval"][1] for each in found])),
        effective_n=float(np.mean([each["effective_n"] for each in found])),
    )


if __name__ == "__main__":
    command(run)()
