"""The behavioural suite (after CheckList, Ribeiro et al. 2020): an answer may not hang on case, a typo, politeness or a name.

Invariance tests need no labels: a text passes where the changed text gets the answer that the text itself got; one that a change
leaves as it is says nothing and is left out. Directional: two texts that get one label have to get it together too. Minimum
functionality: short texts of which every version has to get the label right.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigeonhole.dataset.config import TICKETS, DataConfig
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.metrics import wilson_interval

MINIMUM = TICKETS.replace("tickets.csv", "minimum.csv")
MOST_TEXTS = 100  # of each test; on two cores they take both versions a few seconds
GREETINGS = ("Hello, ", "Hi there! ", "Dear team, ", "Good morning, ")
THANKS = (" Thank you!", " Thanks in advance.", " Kind regards", " Please let me know.")

FIRST_NAMES = "Anna Peter Maria John Sarah Thomas Emma David Laura Michael Julia Daniel Fatima Ahmed Wei Olga Carlos Aisha"
CITIES = "London Berlin Paris Madrid Rome Vienna Dublin Boston Chicago Toronto Sydney Hamburg Lisbon Oslo"
MONTHS = "January February March April June July August September October November December"

Labels = Callable[[Sequence[str]], Sequence[str]]  # texts -> the labels that a version gives them


def minimum_of(labels: Sequence[str]) -> list[Row]:
    """The texts of minimum functionality that come with tickets, where these are its labels."""
    rows = list(read_rows(DataConfig(path=MINIMUM)))
    return rows if set(labels) == {row.label for row in rows} else []


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


def with_other_names(text: str, draw: random.Random) -> str:
    """Each first name, city and month becomes another one of its kind, each digit another digit."""
    for names in (FIRST_NAMES, CITIES, MONTHS):
        text = _with_others(text, names.split(), draw)
    return re.sub(r"\d", lambda _: str(draw.randrange(1, 10)), text)


def _with_others(text: str, names: Sequence[str], draw: random.Random) -> str:
    def other(found: re.Match[str]) -> str:
        return draw.choice([name for name in names if name != found[0]])

    return re.sub(rf"\b({'|'.join(names)})\b", other, text)


INVARIANCES = {
    "upper case": to_upper,
    "lower case": to_lower,
    "a typo": with_typo,
    "politeness": politely,
    "other names": with_other_names,
}


def measure_behaviour(
    labels_of: Labels, texts: Sequence[str], minimum: Sequence[Row] = (), seed: int = 0
) -> dict[str, NDArray[np.bool_]]:
    """For each test, which of its texts passed, (k,); the same texts and changes for the same seed, whatever the version."""
    chosen = random.Random(seed).sample(list(texts), min(MOST_TEXTS, len(texts)))
    changed = {}
    for name, change in INVARIANCES.items():
        draw = random.Random(seed)
        changed[name] = [change(text, draw) for text in chosen]
    # All in one question, each text once: what is one text to a version, in another case for instance, costs it nothing.
    asked = dict.fromkeys([*chosen, *(text for others in changed.values() for text in others), *(row.text for row in minimum)])
    given = dict(zip(asked, labels_of(list(asked)), strict=True))
    before = np.array([given[text] for text in chosen])
    found = {}
    for name, others in changed.items():
        differs = np.array([new != old for new, old in zip(others, chosen, strict=True)], np.bool_)
        if differs.any():
            found[name] = (np.array([given[text] for text in others]) == before)[differs]
    pairs = _pairs(before)
    if pairs:
        joined = labels_of([f"{chosen[first]} {chosen[second]}" for first, second in pairs])
        found["two texts of one label"] = np.array(joined) == before[[first for first, _ in pairs]]
    if minimum:
        found["minimum functionality"] = np.array([given[row.text] == row.label for row in minimum])
    return found


def _pairs(labels: NDArray[np.str_]) -> list[tuple[int, int]]:
    """Neighbours in the row of texts that have one label; each text in at most one pair."""
    pairs = []
    for label in sorted(set(labels.tolist())):
        places = np.flatnonzero(labels == label).tolist()
        pairs += list(zip(places[::2], places[1::2], strict=False))
    return pairs


def summarise(behaviour: Mapping[str, NDArray[np.bool_]]) -> dict[str, dict[str, Any]]:
    """`{"a typo": {"n", "passed", "interval"}, …}`, as a bundle's metrics have it."""
    shares = {name: (len(passed), wilson_interval(int(passed.sum()), len(passed))) for name, passed in behaviour.items()}
    return {name: {"n": n, "passed": found.estimate, "interval": [found.low, found.high]} for name, (n, found) in shares.items()}
