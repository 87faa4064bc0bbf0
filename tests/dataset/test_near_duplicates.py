import random

import numpy as np
import pytest

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


def test_tickets_have_none() -> None:
    texts = [normalise(row.text) for row in read_rows(DataConfig())]
    assert not find_near_duplicates(sketch(texts), np.zeros(len(texts), np.int8), np.arange(len(texts))).rows.any()
