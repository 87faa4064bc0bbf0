"""Leave one out: what each word of a text does to the probability of a label, by asking again without it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pigeonhole.classifier import Prediction
from pigeonhole.serving.schemas import WordWeight

MAX_WORDS = 64
MAX_S = 5.0


@dataclass(frozen=True)
class Word:
    """Its place in the text, in characters."""

    start: int
    end: int


def words_of(text: str) -> list[Word]:
    """Whatever white space divides."""
    return [Word(*found.span()) for found in re.finditer(r"\S+", text)]


def without(text: str, word: Word) -> str:
    return text[: word.start] + text[word.end :]


def weights(
    text: str, words: Sequence[Word], label_id: int, whole: Prediction, left_out: Sequence[Prediction]
) -> list[WordWeight]:
    """How much less probable the label is without each word; below zero where the word speaks against it."""
    return [
        WordWeight(
            text[word.start : word.end],
            word.start,
            word.end,
            float(whole.probabilities[label_id] - prediction.probabilities[label_id]),
        )
        for word, prediction in zip(words, left_out, strict=True)
    ]
