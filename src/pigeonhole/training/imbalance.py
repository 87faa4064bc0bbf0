"""Few rows of some labels: weights for them in the loss, more of them in an epoch, and a stop for a label never learned."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigeonhole.command import say
from pigeonhole.dataset.read import some_of
from pigeonhole.errors import DeadLabelError

ROWS_TO_TELL = 5  # a label that is found half of the time is missed by luck in all of them once in 32


def balanced_weights(label_ids: NDArray[np.int64], c: int) -> NDArray[np.float64]:
    """(c,): n / (c * rows of the label), so that all labels weigh alike and the rows weigh 1 on average."""
    counts = np.bincount(label_ids, minlength=c)
    return np.where(counts > 0, len(label_ids) / (np.maximum(counts, 1) * np.count_nonzero(counts)), 0.0)


def draw_balanced(label_ids: NDArray[np.int64], seed: int, epoch: int) -> NDArray[np.int64]:
    """(n,): an epoch in which each label is as likely as the next: rows of frequent labels are left out, of rare ones repeated.

    Each label's rows are gone through in a shuffled order before any of them comes again.
    """
    random = np.random.default_rng([seed, epoch, 1])
    labels = np.unique(label_ids)
    shares = np.full(len(labels), len(label_ids) // len(labels))
    shares[random.permutation(len(labels))[: len(label_ids) % len(labels)]] += 1
    drawn = []
    for label, share in zip(labels, shares, strict=True):
        rows = np.flatnonzero(label_ids == label)
        rounds = [random.permutation(rows) for _ in range(-(-int(share) // len(rows)))]
        drawn.append(np.concatenate(rounds)[:share])
    return random.permutation(np.concatenate(drawn))


def refuse_dead_labels(per_class: Mapping[str, Mapping[str, Any]], allowed: bool) -> list[str]:
    """Labels of which no test row was recognised. Raises DeadLabelError unless they are allowed or have too few rows to tell."""
    dead = [label for label, found in per_class.items() if found["support"] and not found["recall"]]
    certain = [label for label in dead if per_class[label]["support"] >= ROWS_TO_TELL]
    if certain and not allowed:
        raise DeadLabelError(
            f"labels that the model never gives to a test row of theirs: {_listing(certain, per_class)}; give them more rows, "
            "trainer.class_weights=balanced or trainer.sampling=balanced, or allow it with trainer.allow_dead_labels=true"
        )
    if dead:
        say(f"warning: not one test row was recognised of {_listing(dead, per_class)}")
    return dead


def _listing(labels: Sequence[str], per_class: Mapping[str, Mapping[str, Any]]) -> str:
    return some_of([f"{label!r} ({per_class[label]['support']} test rows)" for label in labels])
