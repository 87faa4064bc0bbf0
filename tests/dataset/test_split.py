import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.split import Split, quotas, split_rows


def _rows(*label_sizes: int) -> list[Row]:
    return [Row(f"text {label} {number}", f"label{label}", 2) for label, size in enumerate(label_sizes) for number in range(size)]


def _sides(split: Split) -> tuple[list[Row], ...]:
    return split.train, split.validation, split.test


def test_every_row_is_on_one_side() -> None:
    rows = _rows(30, 50, 20)
    sides = _sides(split_rows(rows, 0.1, 0.2, seed=0))
    assert Counter(row for side in sides for row in side) == Counter(rows)
    assert [len(side) for side in sides] == [70, 10, 20]


def test_labels_keep_their_share() -> None:
    split = split_rows(_rows(100, 200, 700), 0.1, 0.1, seed=3)
    assert Counter(row.label for row in split.test) == {"label0": 10, "label1": 20, "label2": 70}


def test_order_of_rows_changes_nothing() -> None:
    rows = _rows(40, 41, 42)
    shuffled = random.Random(5).sample(rows, len(rows))
    assert split_rows(rows, 0.1, 0.1, seed=0) == split_rows(shuffled, 0.1, 0.1, seed=0)


def test_nor_does_it_where_texts_are_repeated_in_other_spellings_and_with_other_labels() -> None:
    rows = _rows(20, 20) + [Row(f"TEXT 0 {number}", f"label{number % 2}", 2) for number in range(20)]
    assert split_rows(rows, 0.1, 0.1, seed=0) == split_rows(rows[::-1], 0.1, 0.1, seed=0)


def test_another_seed_is_another_split_of_the_same_sizes() -> None:
    rows = _rows(100, 100)
    one, other = split_rows(rows, 0.1, 0.1, seed=0), split_rows(rows, 0.1, 0.1, seed=1)
    assert one.test != other.test
    assert len(one.test) == len(other.test)


def test_spellings_of_one_text_stay_together() -> None:
    rows = _rows(50, 50) + [Row(f"TEXT 0  {number}?", "label0", 2) for number in range(50)]
    sides = _sides(split_rows(rows, 0.2, 0.2, seed=0))
    texts = [{normalise(row.text) for row in side} for side in sides]
    assert not texts[0] & texts[1]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]


def test_three_rows_reach_all_three_splits() -> None:
    for seed in range(20):
        for side in _sides(split_rows(_rows(3, 3, 200), 0.45, 0.45, seed)):
            assert {row.label for row in side} == {"label0", "label1", "label2"}


def test_three_texts_reach_all_three_splits_however_often_they_are_repeated() -> None:
    rows = _rows(3, 200) + [Row("text 0 1", "label0", 2)] * 2
    for seed in range(20):
        for side in _sides(split_rows(rows, 0.3, 0.45, seed)):
            assert {row.label for row in side} == {"label0", "label1"}


def test_a_split_of_repeated_texts_is_its_share_of_the_rows_not_of_the_texts() -> None:
    split = split_rows([row for row in _rows(20, 20) for _ in range(5)], 0.1, 0.2, seed=0)
    assert [len(side) for side in _sides(split)] == [140, 20, 40]


def test_a_row_of_several_labels_counts_for_the_one_that_fewest_rows_have() -> None:
    """Of label b, which stands in more kinds of answers than label a, each split has a row all the same."""
    answers = ["a"] * 100 + ["a|b"] * 10 + ["b|c", "b|d", "b|e"]
    rows = [Row(f"text {number}", answer, 2) for number, answer in enumerate(answers)]
    for seed in range(20):
        for side in _sides(split_rows(rows, 0.1, 0.1, seed, "multi_label")):
            assert any("b" in row.label for row in side)


def test_what_the_test_split_took_is_no_room_for_validation() -> None:
    split = split_rows(_rows(3, 3, 5, 7), 0.45, 0.25, seed=0)
    assert [len(side) for side in _sides(split)] == [6, 8, 4]


def test_no_share_is_no_rows() -> None:
    split = split_rows(_rows(5, 5), 0.0, 0.0, seed=0)
    assert (len(split.train), split.validation, split.test) == (10, [], [])


def test_most_rows_keep_their_side_when_rows_are_added() -> None:
    rows = _rows(500, 500)
    before = {row.text for row in split_rows(rows, 0.1, 0.1, seed=0).test}
    after = {row.text for row in split_rows(rows + _rows(505, 505)[-5:], 0.1, 0.1, seed=0).test}
    assert len(before & after) >= 98


@given(
    sizes=st.lists(st.integers(3, 60), min_size=1, max_size=12),
    val=st.floats(0.01, 0.45),
    test=st.floats(0.01, 0.45),
    seed=st.integers(0, 2**32 - 1),
)
def test_sizes_are_within_rounding_unless_a_label_is_too_small(sizes: list[int], val: float, test: float, seed: int) -> None:
    rows = _rows(*sizes)
    split = split_rows(rows, val, test, seed)
    for side in _sides(split):
        assert {row.label for row in side} == {f"label{number}" for number in range(len(sizes))}
    if min(sizes) * min(val, test, 1 - val - test) >= 3:
        assert len(split.test) == round(len(rows) * test)
        assert len(split.validation) == round(len(rows) * val)


@pytest.mark.parametrize(("share", "expected"), [(0.1, [1, 2, 2]), (0.5, [8, 8, 8]), (0.0, [0, 0, 0])])
def test_quotas_go_to_the_largest_remainders(share: float, expected: list[int]) -> None:
    rows = np.array([15, 16, 17])
    assert quotas(rows, share, room=rows).tolist() == expected


def test_quota_that_finds_no_room_goes_to_another_label() -> None:
    assert quotas(np.array([8, 31]), 0.43, room=np.array([3, 20])).tolist() == [3, 14]
