"""Accuracy on parts of the rows that one would want to know about by themselves: by length, language, a pattern of one's own.

The label is a slice too: metrics.per_class has it. A language is guessed from the script and from function words, which is right
for sentences and says `other` for what has neither; it knows eleven languages and no mixtures.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigeonhole import metrics
from pigeonhole.errors import ConfigError
from pigeonhole.metrics import Ids, wilson_interval

LENGTHS = (5, 15, 40)  # words: a shout, a sentence, some sentences, a letter
LEAST_ROWS = 10  # of a language: fewer say nothing, and a guess may be wrong
LEAST_WORDS = 2  # "no" alone is Spanish, Italian and English
FUNCTION_WORDS = {
    "de": "der die das und ist nicht ich mit für auf ein eine sie wir wie bitte kann haben zu",
    "en": "the and is not i with for on a my you we how please can have to of it this that where what",
    "es": "el la los las y es no con para por un una mi como que puedo de está del",
    "fr": "le la les et est pas je avec pour sur un une mon comment que vous de du des",
    "it": "il lo gli e è non con per un una mio come che posso di della sono",
    "nl": "de het en is niet ik met voor op een mijn hoe dat kan van",
    "pt": "o os as e é não com para por um uma meu como que posso de da do",
}
SCRIPTS = {"ru": r"[\u0400-\u04ff]", "ar": r"[\u0600-\u06ff]", "zh": r"[\u3040-\u30ff\u4e00-\u9fff]"}
KANA = re.compile(r"[\u3040-\u30ff]")  # of Japanese alone, which writes Chinese characters beside it


def text_slices(
    texts: Sequence[str], true_ids: Ids, predicted_ids: Ids, patterns: str | None = None
) -> dict[str, dict[str, Any]]:
    """`{"1-5 words": {"n", "accuracy", "interval"}, …}`; a slice without rows is left out."""
    right = metrics.right(true_ids, predicted_ids)
    slices = {}
    for name, inside in text_masks(texts, patterns).items():
        n, hits = int(inside.sum()), int(right[inside].sum())
        interval = wilson_interval(hits, n)
        slices[name] = {"n": n, "accuracy": interval.estimate, "interval": [interval.low, interval.high]}
    return slices


def text_masks(texts: Sequence[str], patterns: str | None = None) -> dict[str, NDArray[np.bool_]]:
    """For each slice that has rows, which of the texts it holds, (n,). `patterns` as `read_patterns` takes them."""
    own = {
        name: np.array([pattern.search(text) is not None for text in texts], np.bool_)
        for name, pattern in read_patterns(patterns).items()
    }
    return {name: inside for name, inside in {**_lengths(texts), **_languages(texts), **own}.items() if inside.any()}


def read_patterns(patterns: str | None) -> Mapping[str, re.Pattern[str]]:
    """`NAME=REGEX`, several of them divided by ` ; `. Raises ConfigError."""
    found = {}
    for part in patterns.split(" ; ") if patterns else ():
        name, equals, pattern = part.strip().partition("=")
        if name in found:
            raise ConfigError(f"data.slices: {name!r} is there twice; give each slice a name of its own")
        try:
            found[name] = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"data.slices: {pattern!r} is no regular expression: {error}") from error
        if not (name and equals and pattern):
            raise ConfigError(f"data.slices: expected NAME=REGEX, several divided by ' ; ', found {part!r}")
    return found


def _lengths(texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    words = np.array([len(text.split()) for text in texts])
    return {
        name: (words > low) & (words <= high) if low else words <= high
        for name, low, high in zip(_names(), (0, *LENGTHS), (*LENGTHS, np.inf), strict=True)
    }


def _names() -> list[str]:
    starts = [1, *(length + 1 for length in LENGTHS)]
    return [f"{low}-{high} words" for low, high in zip(starts, LENGTHS, strict=False)] + [f"{starts[-1]} words and more"]


def _languages(texts: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Only where there are several: all rows are no slice."""
    guessed = np.array([guess_language(text) for text in texts], np.str_)
    masks = {f"language {name}": guessed == name for name in sorted(set(guessed.tolist()) - {"other"})}
    kept = {name: inside for name, inside in masks.items() if inside.sum() >= LEAST_ROWS}
    return kept if len(kept) > 1 else {}


def guess_language(text: str) -> str:
    """An ISO 639-1 code, or `other`."""
    for name, script in SCRIPTS.items():
        if len(re.findall(script, text)) * 2 > len(re.findall(r"\w", text)):
            return "ja" if name == "zh" and KANA.search(text) else name
    words = re.findall(r"\w+", text.lower())
    counts = {name: sum(word in known for word in words) for name, known in _KNOWN.items()}
    best = max(counts, key=lambda name: counts[name])
    return best if counts[best] >= LEAST_WORDS and list(counts.values()).count(counts[best]) == 1 else "other"


_KNOWN = {name: frozenset(words.split()) for name, words in FUNCTION_WORDS.items()}
