"""Several labels a row: as one string and back, and the one label that such a row counts for.

The string is sorted, with a bar between the labels; the empty string is no label at all. Rows, their digests and the check for
conflicts treat it as they treat a single label.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

SEPARATOR = "|"


def join_labels(labels: Iterable[str]) -> str:
    """No label may hold the separator."""
    return SEPARATOR.join(sorted(labels))


def split_labels(joined: str) -> tuple[str, ...]:
    return tuple(joined.split(SEPARATOR)) if joined else ()


def parts_of(answer: str, task: str) -> tuple[str, ...]:
    """The labels that a row's answer names."""
    return split_labels(answer) if task == "multi_label" else (answer,)


def ids_of(answers: Sequence[str], labels: Sequence[str], task: str) -> NDArray[np.int64]:
    """(n,) places of the answers among the labels; of several labels (n, c), 1 where the answer has the label.

    The answers name no other labels.
    """
    places = {label: place for place, label in enumerate(labels)}
    if task == "single_label":
        return np.array([places[answer] for answer in answers], np.int64)
    ids = np.zeros((len(answers), len(labels)), np.int64)
    for row, answer in enumerate(answers):
        ids[row, [places[label] for label in split_labels(answer)]] = 1
    return ids


def members_of(answers: Sequence[str], task: str) -> tuple[list[str], list[NDArray[np.int64]]]:
    """All labels, sorted, and the label ids of each answer."""
    parts = [parts_of(answer, task) for answer in answers]
    labels = sorted({label for part in parts for label in part})
    ids = {label: number for number, label in enumerate(labels)}
    return labels, [np.array([ids[label] for label in part], np.int64) for part in parts]


def owners_of(members: Sequence[NDArray[np.int64]], rows: NDArray[np.int64], c: int) -> NDArray[np.int64]:
    """The label that each answer counts for where rows are divided: the rarest that it has, so that rare ones reach each side.

    `rows`: how many rows have each answer. An answer without a label counts as a label of its own, c.
    """
    counts = np.zeros(c, np.int64)
    for own, found in zip(members, rows.tolist(), strict=True):
        counts[own] += found
    return np.array([own[np.argmin(counts[own])] if len(own) else c for own in members], np.int64)
