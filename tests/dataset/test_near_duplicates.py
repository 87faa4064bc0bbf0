import random

import numpy as np
import pytest

from pigeonhole.dataset import near_duplicates
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.near_duplicates import Sketches, find_near_duplicates, sketch
from pigeonhole.dataset.read import read_rows

LETTERS = "abcdefghijklmnopqrstuvwxyz "


def _grams(text: str) -> set[str]:
    return {text[place : place + 5] for place in range(max(1, len(text) - 4))}


def _jaccard(one: str, other: str) -> float:
    return len(_grams(one) & _grams(other)) / len(_grams(one) | _grams(other))


def _random_text(chance: random.Random, length: int) -> str:
    return "".join(chance.choice(LETTERS) for _ in range(length))


@pytest.mark.parametrize("length", [20, 60, 400])
def test_equal_slots_estimate_the_jaccard_similarity(length: int) -> None:
    chance = random.Random(0)
    errors = []
    for _ in range(200):
        text = _random_text(chance, length)
        other = text[: length // 2 + chance.randrange(length // 2)] + _random_text(chance, length // 3)
        one, two = sketch([text, other])
        errors.append((one == two).mean() - _jaccard(text, other))
    assert abs(np.mean(errors)) < 0.02
    assert np.std(errors) < 0.1


def test_sketch_does_not_depend_on_the_company() -> None:
    texts = ["hello there my friend", "", "a", "émile 👍 is here", "x" * 3000]
    together = sketch(texts)
    assert all((sketch([text])[0] == row).all() for text, row in zip(texts, together, strict=True))


def test_batches_make_one_table() -> None:
    sketches = Sketches()
    sketches.add(["one text", "two texts"])
    sketches.add(["three texts"])
    assert (sketches.table() == sketch(["one text", "two texts", "three texts"])).all()


def test_changed_copies_are_found_and_strangers_are_not() -> None:
    chance = random.Random(1)
    texts = [_random_text(chance, 100) for _ in range(500)]
    copies = [text[:45] + "zzz" + text[46:] for text in texts[:100]]
    sides = np.zeros(600, np.int8)
    sides[550:] = 2
    found = find_near_duplicates(sketch(texts + copies), sides, np.arange(600))
    assert found.rows[:100].all()
    assert found.rows[500:].all()
    assert not found.rows[100:500].any()
    assert found.across[550:].all()
    assert not found.across[500:550].any()
    assert not found.across[:50].any()


def test_text_that_many_share_is_found_everywhere() -> None:
    texts = [f"please tell me how i can top up my card number {number}" for number in range(300)]
    assert find_near_duplicates(sketch(texts), np.zeros(300, np.int8), np.arange(300)).rows.all()


def test_only_rows_to_be_compared_are_found_each_at_its_own_place() -> None:
    chance = random.Random(2)
    stranger, text = _random_text(chance, 100), _random_text(chance, 100)
    texts = [stranger, text, text, text[:50] + "zz" + text[52:]]
    found = find_near_duplicates(sketch(texts), np.array([0, 0, 0, 1], np.int8), np.array([0, 2, 3]))
    assert found.rows.tolist() == found.across.tolist() == [False, False, True, True]


def test_a_text_meets_more_than_its_next_neighbour() -> None:
    sides = np.array([0, 0, 0, 2], np.int8)
    assert find_near_duplicates(sketch(["one and the same text"] * 4), sides, np.arange(4)).across.all()


def test_pairs_are_compared_in_blocks_and_none_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_duplicates, "_PAIRS_AT_ONCE", 2)
    texts = [f"{_random_text(random.Random(number // 2), 60)}{number % 2}" for number in range(400)]
    assert find_near_duplicates(sketch(texts), (np.arange(400) % 2).astype(np.int8), np.arange(400)).rows.all()


def test_tickets_have_none() -> None:
    texts = [normalise(row.text) for row in read_rows(DataConfig())]
    assert not find_near_duplicates(sketch(texts), np.zeros(len(texts), np.int8), np.arange(len(texts))).rows.any()
