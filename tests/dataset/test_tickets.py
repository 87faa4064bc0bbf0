"""What the data card of tickets claims, checked exactly, without the sketches that check-data uses."""

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator
from math import floor
from pathlib import Path

import pytest

import pigeonhole.dataset

FOLDER = Path(pigeonhole.dataset.__file__).parent / "tickets"
FILES = ("tickets.csv", "shifted.csv", "out_of_scope.csv")
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
QUEUES = {"account_access", "billing", "cancellation", "delivery", "feedback", "refund", "sales", "technical_fault"}


def _rows(name: str) -> list[tuple[str, str]]:
    with (FOLDER / name).open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["text", "label"]
    return [(text, label) for text, label in rows]


def _texts() -> list[str]:
    return [text for name in FILES for text, _ in _rows(name)]


def _folded(text: str) -> str:
    return re.sub(r"\W+", " ", text.casefold()).strip()


def _word_grams(text: str) -> set[Hashable]:
    words = text.split()
    return {tuple(words[place : place + 5]) for place in range(max(1, len(words) - 4))}


def _character_grams(text: str) -> set[Hashable]:
    return {text[place : place + 5] for place in range(max(1, len(text) - 4))}


def _pairs_above_half(sets: list[set[Hashable]]) -> Iterator[tuple[int, int]]:
    """Exact: two sets with a Jaccard similarity above 1/2 share one of the rarest grams of each, half of them plus one."""
    often = Counter(gram for grams in sets for gram in grams)
    index: dict[Hashable, list[int]] = defaultdict(list)
    for number, grams in enumerate(sets):
        rarest = sorted(grams, key=lambda gram: (often[gram], repr(gram)))[: floor(len(grams) / 2) + 1]
        for other in {other for gram in rarest for other in index[gram]}:
            if 2 * len(grams & sets[other]) > len(grams | sets[other]):
                yield other, number
        for gram in rarest:
            index[gram].append(number)


def test_there_are_enough_messages_in_every_queue() -> None:
    counts = Counter(label for _, label in _rows("tickets.csv"))
    assert counts.keys() == QUEUES
    assert min(counts.values()) >= 150
    assert len({_folded(text) for text, _ in _rows("tickets.csv")}) >= 1600


def test_the_world_after_the_change_has_the_same_queues() -> None:
    rows = _rows("shifted.csv")
    assert len(rows) >= 200
    assert {label for _, label in rows} == QUEUES


def test_messages_out_of_scope_have_their_own_label() -> None:
    rows = _rows("out_of_scope.csv")
    assert len(rows) >= 200
    assert {label for _, label in rows} == {"out_of_scope"}


def test_no_message_stands_there_twice() -> None:
    folded = [_folded(text) for text in _texts()]
    assert len(set(folded)) == len(folded)


@pytest.mark.parametrize("grams", [_word_grams, _character_grams])
def test_no_two_messages_share_more_than_half_of_their_5_grams(grams: Callable[[str], set[Hashable]]) -> None:
    assert list(_pairs_above_half([grams(_folded(text)) for text in _texts()])) == []


def test_the_search_for_pairs_is_exact() -> None:
    texts = [_folded(text) for text in _texts()[:300]]
    texts += [text[: len(text) * share // 100] for text, share in zip(texts[:60], range(30, 90), strict=True)]
    sets = [_character_grams(text) for text in texts]
    expected = {
        (one, other)
        for other in range(len(sets))
        for one in range(other)
        if 2 * len(sets[one] & sets[other]) > len(sets[one] | sets[other])
    }
    assert set(_pairs_above_half(sets)) == expected
    assert len(expected) > 20


@pytest.mark.parametrize("name", FILES)
def test_the_data_card_says_how_many_rows_a_file_has(name: str) -> None:
    assert f"| `{name}` | {len(_rows(name)):,} |" in CARD


@pytest.mark.parametrize("words", ["CC0", "language models"])
def test_the_data_card_says_whose_texts_they_are(words: str) -> None:
    assert words in CARD
