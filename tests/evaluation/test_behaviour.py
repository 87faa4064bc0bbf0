import random
from collections.abc import Sequence

import numpy as np

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.evaluation.behaviour import (
    CITIES,
    FIRST_NAMES,
    INVARIANCES,
    MONTHS,
    MOST_TEXTS,
    measure_behaviour,
    minimum_of,
    politely,
    summarise,
    with_other_names,
    with_typo,
)

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
    assert list(found) == [*(name for name in INVARIANCES if name != "lower case"), "two texts of one label"]
    assert (passed["upper case"], passed["politeness"], passed["other names"]) == (0, 0, 1)
    assert 0.3 < passed["a typo"] < 0.9  # a typo in the first word changes the answer, one elsewhere does not
    assert {name: len(flags) for name, flags in found.items()} == {**dict.fromkeys(found, 100), "two texts of one label": 50}


def test_a_version_that_hears_none_of_it_passes_all() -> None:
    found = measure_behaviour(lambda texts: ["x"] * len(texts), TEXTS)
    assert all(flags.all() for flags in found.values())


def test_an_answer_that_hangs_on_numbers_or_on_how_much_was_said_is_found_out() -> None:
    found = measure_behaviour(by_number, TEXTS)
    assert (found["upper case"].mean(), found["other names"].mean()) == (1, 0)
    by_length = measure_behaviour(lambda texts: [str(len(text) // 40) for text in texts], TEXTS)
    assert by_length["two texts of one label"].mean() == 0


def test_names_cities_months_and_digits_become_others_of_their_kind() -> None:
    changed = with_other_names("Anna wrote from Berlin in March about order 111, and Annabel did not", random.Random(0))
    name, _, _, city, _, month, *_ = changed.split()
    assert not {name, city, month} & {"Anna", "Berlin", "March"}
    assert name in FIRST_NAMES.split()
    assert city in CITIES.split()
    assert month in MONTHS.split()
    assert "111" not in changed
    assert changed.endswith(", and Annabel did not")
    assert "Oslo" not in {with_other_names("Oslo", random.Random(seed)) for seed in range(200)}


def test_what_a_change_leaves_as_it_is_is_not_counted() -> None:
    assert "other names" not in measure_behaviour(by_first_word, ["where is my parcel", "the invoice is wrong"])
    assert measure_behaviour(by_number, ["order 4421", "where is my parcel"])["other names"].tolist() == [False]
    assert summarise({"a typo": np.array([True, False])})["a typo"]["passed"] == 0.5


def test_the_same_seed_puts_the_same_texts_to_every_version() -> None:
    asked: list[list[str]] = [[], []]
    for said in asked:
        measure_behaviour(lambda texts, said=said: said.extend(texts) or ["x"] * len(texts), TEXTS, seed=3)  # type: ignore[misc]
    assert asked[0] == asked[1]
    assert len(asked[0]) == len(set(asked[0]))  # what a change leaves as it is is not asked again


def test_minimum_functionality_counts_labels() -> None:
    minimum = [Row("number 1", "1", 2), Row("number 2", "3", 3)]
    assert measure_behaviour(by_number, TEXTS[:5], minimum)["minimum functionality"].tolist() == [True, False]


def test_the_texts_of_minimum_functionality_are_for_the_labels_of_tickets_alone() -> None:
    labels = {row.label for row in read_rows(DataConfig())}
    assert {row.label for row in minimum_of(sorted(labels))} == labels
    assert minimum_of(sorted(labels)[1:]) == minimum_of([*labels, "other"]) == []


def test_a_typo_swaps_two_letters_inside_one_word_and_leaves_short_words() -> None:
    draw = random.Random(0)
    assert with_typo("a to of", draw) == "a to of"
    changed = with_typo("my parcel is late", draw)
    assert changed != "my parcel is late"
    assert sorted(changed) == sorted("my parcel is late")
    assert {with_typo("abcde", draw) for _ in range(50)} == {"acbde", "abdce"}  # both ends stay, by which people read
    assert "where is it" in politely("where is it", draw)
