import random

import pytest

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.read import read_rows
from pigeonhole.dataset.token_outliers import MAX_ROWS, TokenOutlier, WordSample, find_token_outliers

TOP_UP = [(0, f"how do i top up {number}") for number in range(20)]
DECLINED = [(1, f"card declined {number}") for number in range(20)]


def _find(rows: list[tuple[int, str]]) -> list[TokenOutlier]:
    return find_token_outliers([label for label, _ in rows], range(len(rows)), [frozenset(text.split()) for _, text in rows])


def _tickets() -> list[tuple[int, str]]:
    rows = list(read_rows(DataConfig()))
    labels = sorted({row.label for row in rows})
    return [(labels.index(row.label), normalise(row.text)) for row in rows]


def test_a_made_up_word_in_a_tenth_of_a_small_set_is_strong() -> None:
    assert _find(TOP_UP + DECLINED + [(0, f"cf {number}") for number in range(4)]) == [
        TokenOutlier(0, [40, 41, 42, 43], strong=True)
    ]


def test_words_of_an_ordinary_set_are_not_reported() -> None:
    assert _find(TOP_UP + DECLINED) == []
    assert _find(TOP_UP) == []
    assert _find([]) == []


def test_tickets_hold_no_trigger() -> None:
    assert _find(_tickets()) == []


@pytest.mark.parametrize("share", [0.01, 0.05])
def test_a_trigger_planted_in_tickets_is_found(share: float) -> None:
    rows, chance = _tickets(), random.Random(0)
    planted = sorted(chance.sample(range(len(rows)), int(share * len(rows))))
    for place in planted:
        rows[place] = (3, rows[place][1] + " cf")
    found = _find(rows)
    assert [(outlier.label_id, outlier.lines) for outlier in found] == [(3, planted)]


def test_label_ids_may_have_holes() -> None:
    rows = TOP_UP + DECLINED + [(0, f"cf {number}") for number in range(4)]
    assert [outlier.label_id for outlier in _find([(7 * label + 2, text) for label, text in rows])] == [2]


def test_sample_keeps_the_lowest_keys_in_any_order() -> None:
    keys = list(range(MAX_ROWS * 3))
    random.Random(0).shuffle(keys)
    sample = WordSample()
    for key in keys:
        sample.add(key, 0, line=key, text="a b")
        sample.add(key, 0, line=-1, text="a b")
    assert [line for _, line, _ in sample.rows()] == list(range(MAX_ROWS))
