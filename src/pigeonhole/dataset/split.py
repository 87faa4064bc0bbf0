"""Train, validation and test: stratified per label, seeded, and decided by the texts alone.

Promises: rows with the same normalised text are on one side; the order of the rows changes nothing; every label is in every
split; a split's size is its share of the rows, rounded (where repeated texts allow it); a text keeps its side when a few rows
come or go, unless it stood at the border.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pigeonhole.dataset.digest import normalise, text_key
from pigeonhole.dataset.label_sets import members_of, owners_of
from pigeonhole.dataset.read import Row

TRAIN, VALIDATION, TEST = 0, 1, 2
NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    train: list[Row]
    validation: list[Row]
    test: list[Row]


def split_rows(rows: Sequence[Row], val: float, test: float, seed: int, task: str = "single_label") -> Split:
    """Each side in an order that depends on texts and seed only. Of several labels a row counts for its rarest."""
    answers = Counter(row.label for row in rows)
    labels, members = members_of(list(answers), task)
    owners = dict(zip(answers, owners_of(members, np.array(list(answers.values())), len(labels)), strict=True))
    key = text_key(seed)
    keys = [key(normalise(row.text)) for row in rows]
    sides = assign_sides(np.array(keys, np.uint64), np.array([owners[row.label] for row in rows], np.int64), val, test)
    ranked = sorted(range(len(rows)), key=lambda place: (keys[place], rows[place].label, rows[place].text))
    return Split(*([rows[place] for place in ranked if sides[place] == side] for side in (TRAIN, VALIDATION, TEST)))


def assign_sides(keys: NDArray[np.uint64], label_ids: NDArray[np.int64], val: float, test: float) -> NDArray[np.int8]:
    """TRAIN, VALIDATION or TEST for each row; `keys` are seeded text keys, `label_ids` number the sorted labels.

    A text that has several labels counts, as a whole, for the first of them.
    """
    _, group_of_row, group_rows = np.unique(keys, return_inverse=True, return_counts=True)
    group_label = owner_of_groups(group_of_row, label_ids, len(group_rows))
    sides = np.zeros(len(group_rows), np.int8)
    rows_per_label = np.bincount(group_label, weights=group_rows).astype(np.int64)
    test_quota = quotas(rows_per_label, test, room=rows_per_label - (2 if val else 1))
    val_quota = quotas(rows_per_label, val, room=rows_per_label - test_quota - 1)
    by_label = np.argsort(
        group_label, kind="stable"
    )  # np.unique sorted the groups by key: within a label they stand in random order
    borders = np.searchsorted(group_label[by_label], np.arange(len(rows_per_label) + 1))
    for label in range(len(rows_per_label)):
        groups = by_label[borders[label] : borders[label + 1]]
        until_test = _take(group_rows[groups], test_quota[label], keep=2 if val else 1)
        until_val = until_test + _take(group_rows[groups[until_test:]], val_quota[label], keep=1)
        sides[groups[:until_test]] = TEST
        sides[groups[until_test:until_val]] = VALIDATION
    return sides[group_of_row]


def owner_of_groups(group_of_row: NDArray[np.int64], label_ids: NDArray[np.int64], groups: int) -> NDArray[np.int64]:
    """The label that each text counts for."""
    owner = np.full(groups, np.iinfo(np.int64).max)
    np.minimum.at(owner, group_of_row, label_ids)
    return owner


def quotas(rows_per_label: NDArray[np.int64], share: float, room: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many rows of each label to take, so that their sum is `share` of all rows, rounded.

    Largest remainders; at least 1 of each label and at most its `room`, which goes first.
    """
    if share == 0:
        return np.zeros_like(rows_per_label)
    ideal = rows_per_label * share
    taken: NDArray[np.int64] = np.minimum(np.maximum(np.floor(ideal).astype(np.int64), 1), np.maximum(room, 0))
    left = round(float(rows_per_label.sum()) * share) - int(taken.sum())
    if left > 0:
        by_remainder = np.argsort(taken - ideal, kind="stable")
        taken[by_remainder[(taken < room)[by_remainder]][:left]] += 1
    return taken


def _take(group_rows: NDArray[np.int64], quota: int, keep: int) -> int:
    """How many groups, from the first on, come closest to `quota` rows: at least one, and `keep` groups are left over."""
    if quota == 0 or len(group_rows) <= keep:
        return 0
    return min(1 + int(np.argmin(np.abs(np.cumsum(group_rows) - quota))), len(group_rows) - keep)
