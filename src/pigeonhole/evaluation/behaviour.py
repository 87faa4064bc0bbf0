"""The behavioural suite (after CheckList, Ribeiro et al. 2020): an answer may not hang on case, a typo or politeness.

Invariance tests need no labels: a text passes where the changed text gets the answer that the text itself got. Minimum
functionality: short texts of which every version has to get the label right.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pigeonhole.dataset.read import Row

MOST_TEXTS = 100  # of each test; on two cores they take both versions a few seconds
GREETINGS = ("Hello, ", "Hi there! ", "Dear team, ", "Good morning, ")
THANKS = (" Thank you!", " Thanks in advance.", " Kind regards", " Please let me know.")

Labels = Callable[[Sequence[str]], Sequence[str]]  # texts -> the labels that a version gives them


def to_upper(text: str, draw: random.Random) -> str:  # noqa: ARG001  all changes are called alike
    return text.upper()


def to_lower(text: str, draw: random.Random) -> str:  # noqa: ARG001
    return text.lower()


def with_typo(text: str, draw: random.Random) -> str:
    """Two neighbouring letters change places inside one word of at least five letters; a text without such a word stays."""
    words = text.split(" ")
    long = [place for place, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long:
        return text
    place = draw.choice(long)
    word = words[place]
    at = draw.randrange(1, len(word) - 2)
    words[place] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return " ".join(words)


def politely(text: str, draw: random.Random) -> str:
    return draw.choice(GREETINGS) + text + draw.choice(THANKS)


INVARIANCES = {"upper case": to_upper, "lower case": to_lower, "a typo": with_typo, "politeness": politely}


def measure_behaviour(
    labels_of: Labels, texts: Sequence[str], minimum: Sequence[Row] = (), seed: int = 0
) -> dict[str, NDArray[np.bool_]]:
    """For each test, which of its texts passed, (k,); the same texts and changes for the same seed, whatever the version."""
    chosen = random.Random(seed).sample(list(texts), min(MOST_TEXTS, len(texts)))
    before = np.array(labels_of(chosen))
    found = {}
    for name, change in INVARIANCES.items():
        draw = random.Random(seed)
        found[name] = np.array(labels_of([change(text, draw) for text in chosen])) == before
    if minimum:
        found["minimum functionality"] = np.array(labels_of([row.text for row in minimum])) == [row.label for row in minimum]
    return found
