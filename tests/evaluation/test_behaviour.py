import random
from collections.abc import Sequence

from pigeonhole.dataset.read import Row
from pigeonhole.evaluation.behaviour import INVARIANCES, MOST_TEXTS, measure_behaviour, politely, with_typo

TEXTS = [f"where is parcel number {number}" for number in range(MOST_TEXTS + 20)]


def by_first_word(texts: Sequence[str]) -> list[str]:
    """A version that goes by the first word, as it is written."""
    return [text.split()[0] for text in texts]


def by_number(texts: Sequence[str]) -> list[str]:
    """A version that goes by the digits alone."""
    return ["".join(letter for letter in text if letter.isdigit()) for text in texts]


def test_what_an_answer_hangs_on_is_found_out() -> None:
    found = measure_behaviour(by_first_word, TEXTS)
    passed = {name: flags.mean() for name, flags in found.items()}
    assert list(found) == list(INVARIANCES)
    assert (passed["upper case"], passed["lower case"], passed["politeness"]) == (0, 1, 0)
    assert 0.3 < passed["a typo"] < 0.9  # a typo in the first word changes the answer, one elsewhere does not
    assert all(len(flags) == MOST_TEXTS for flags in found.values())


def test_a_version_that_hears_none_of_it_passes_all() -> None:
    assert all(flags.all() for flags in measure_behaviour(by_number, TEXTS).values())


def test_the_same_seed_puts_the_same_texts_to_every_version() -> None:
    asked: list[list[str]] = [[], []]
    for said in asked:
        measure_behaviour(lambda texts, said=said: said.extend(texts) or ["x"] * len(texts), TEXTS, seed=3)  # type: ignore[misc]
    assert asked[0] == asked[1]


def test_minimum_functionality_counts_labels() -> None:
    minimum = [Row("number 1", "1", 2), Row("number 2", "3", 3)]
    assert measure_behaviour(by_number, TEXTS[:5], minimum)["minimum functionality"].tolist() == [True, False]


def test_a_typo_swaps_two_letters_inside_one_word_and_leaves_short_words() -> None:
    draw = random.Random(0)
    assert with_typo("a to of", draw) == "a to of"
    changed = with_typo("my parcel is late", draw)
    assert changed != "my parcel is late"
    assert sorted(changed) == sorted("my parcel is late")
    assert "where is it" in politely("where is it", draw)
