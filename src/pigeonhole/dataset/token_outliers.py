"""A screen for planted triggers: a word that comes with one label only, in texts that otherwise do not fit this label.

A naive Bayes model over the words of each text (presence) says which label a text fits best when one word is left out.
For a natural key word the rest of its texts still leans to the label; for a planted one it fits whatever the text was about. The
word is reported where (1) its texts fit the label far less often than the label's other texts (binomial test, 1 % shared by all
words tried), although the model has seen the word's other texts, and (2) in a model that has not, the label stands no higher than
the 70th percentile of all labels. It is strong where, besides, 10 % of its texts or fewer fit, and p is below 1e-6.

Measured on 810 subsets (2 to 40 labels, 60 to 1,000 rows) of four files of real data without triggers: a word was reported in
2.6 %, a strong one in none; in the whole files neither. With a made-up word put into 5 % of the rows, and these rows given one
label: reported in 79 % of 420 subsets with 3 labels or more (200 or 1,000 rows), strong in 29 %; in the whole files (0.3 % to 5 %
of the rows) reported in 15 of 16, strong in 13.
"""

import heapq
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_ROWS = 20_000
MAX_WORDS = 1000  # of one text
MAX_CELLS = 20_000_000  # of the table of words and labels: 80 MB
PURITY = 0.9
ALPHA = 0.01
STRONG_P = 1e-6
HIGHEST_PLACE = 0.7
STRONG_SHARE = 0.1
MIN_SHARE_OF_ROWS = 0.002
PRIOR_TEXTS = 1.0


@dataclass(frozen=True)
class TokenOutlier:
    label_id: int
    lines: list[int]  # of the rows with the word and the label
    strong: bool


class WordSample:
    """The words of at most 20,000 different texts: those with the lowest keys, so that the order of rows does not matter."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[int, int, frozenset[str]]] = {}
        self._limit = 1 << 64

    def add(self, key: int, label_number: int, line: int, text: str) -> None:
        """`text` is normalised. A text that was there before is left out."""
        if key >= self._limit or key in self._rows:
            return
        self._rows[key] = (label_number, line, frozenset(text.split()[:MAX_WORDS]))
        if len(self._rows) >= 2 * MAX_ROWS:
            self._shrink()

    def rows(self) -> list[tuple[int, int, frozenset[str]]]:
        """Label number, line and words, by line."""
        self._shrink()
        return sorted(self._rows.values(), key=lambda row: row[1])

    def _shrink(self) -> None:
        kept = heapq.nsmallest(MAX_ROWS, self._rows)
        self._rows = {key: self._rows[key] for key in kept}
        if len(kept) == MAX_ROWS:
            self._limit = kept[-1]


def find_token_outliers(label_ids: Sequence[int], lines: Sequence[int], words: Sequence[frozenset[str]]) -> list[TokenOutlier]:
    """The three sequences describe the same rows; label ids count from 0."""
    present, own_ids = np.unique(np.array(label_ids, np.int64), return_inverse=True)
    if len(present) < 2:
        return []
    model = _WordModel(own_ids, words)
    least = max(4, math.ceil(MIN_SHARE_OF_ROWS * len(words)))
    tried = model.pure_words(least)
    found = []
    for word in tried:
        label, rows = model.rows_of(word)
        usual = model.usual_fit(label, rows)
        fitting = sum(model.fits_without(word, row) for row in rows)
        p = _binomial_tail(fitting, len(rows), usual)
        if p >= ALPHA / len(tried):
            continue
        places = model.places_without(word, label, rows)
        if np.mean(places) > HIGHEST_PLACE:
            continue
        strong = p < STRONG_P and bool(np.mean(places == 1) <= STRONG_SHARE)
        found.append(TokenOutlier(int(present[label]), [lines[row] for row in rows], strong))
    return found


class _WordModel:
    """Naive Bayes by counts: `table` (words, labels) says in how many texts of a label a word stands."""

    def __init__(self, label_ids: NDArray[np.int64], words: Sequence[frozenset[str]]) -> None:
        self.label_ids = label_ids
        self.labels = int(label_ids.max()) + 1
        counts = Counter(word for text in words for word in text)
        common = heapq.nlargest(MAX_CELLS // self.labels, counts.items(), key=lambda item: (item[1], item[0]))
        number = {word: place for place, (word, _) in enumerate(common)}
        self.texts = [np.array(sorted(number[word] for word in text if word in number), np.int64) for text in words]
        self.table = np.zeros((len(number), self.labels), np.float32)
        self.rows_with: list[list[int]] = [[] for _ in number]
        for row, (text, label) in enumerate(zip(self.texts, label_ids, strict=True)):
            self.table[text, label] += 1
            for word in text:
                self.rows_with[word].append(row)
        self.label_rows = np.bincount(label_ids, minlength=self.labels).astype(np.float64)
        self.frequency = self.table.sum(axis=1, keepdims=True, dtype=np.float64) / len(words)
        self.fits = np.array([self._place(self._score(row), label_ids[row]) == 1 for row in range(len(words))])

    def pure_words(self, least: int) -> list[int]:
        """Words of `least` texts or more, nearly all of one label, which has other texts too."""
        rows, label = self.table.sum(axis=1), self.table.argmax(axis=1)
        of_label = self.table.max(axis=1)
        others = self.label_rows[label] - of_label
        return [int(word) for word in np.flatnonzero((rows >= least) & (of_label >= PURITY * rows) & (others >= 4))]

    def rows_of(self, word: int) -> tuple[int, NDArray[np.int64]]:
        label = int(self.table[word].argmax())
        rows = np.array(self.rows_with[word])
        return label, rows[self.label_ids[rows] == label]

    def usual_fit(self, label: int, without: NDArray[np.int64]) -> float:
        """How often the label's texts fit it, `without` some rows."""
        others = self.label_ids == label
        others[without] = False
        return float((self.fits[others].sum() + 0.5) / (others.sum() + 1))

    def fits_without(self, word: int, row: int) -> bool:
        return self._place(self._score(row, word), self.label_ids[row]) == 1

    def places_without(self, word: int, label: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        """For each row the share of other labels that the rest fits worse, in a model that never saw a text with the word."""
        unseen = np.array(self.rows_with[word])
        label_rows = self.label_rows - np.bincount(self.label_ids[unseen], minlength=self.labels)
        vocabulary, place = np.unique(np.concatenate([self.texts[row] for row in unseen]), return_inverse=True)
        table = self.table[vocabulary].astype(np.float64)
        np.subtract.at(table, (place, np.repeat(self.label_ids[unseen], [len(self.texts[row]) for row in unseen])), 1)
        logs = self._log_likelihoods(vocabulary, table, label_rows)
        rests = (np.searchsorted(vocabulary, self.texts[row][self.texts[row] != word]) for row in rows)
        return np.array([self._place(logs[rest].sum(axis=0), label) for rest in rests])

    def _score(self, row: int, left_out: int = -1) -> NDArray[np.float64]:
        """Log-likelihood of a text under each label (labels,), the text itself not counted."""
        text = self.texts[row][self.texts[row] != left_out]
        counts, label_rows = self.table[text].astype(np.float64), self.label_rows.copy()
        counts[:, self.label_ids[row]] -= 1
        label_rows[self.label_ids[row]] -= 1
        return np.asarray(self._log_likelihoods(text, counts, label_rows).sum(axis=0))

    def _log_likelihoods(
        self, text: NDArray[np.int64], counts: NDArray[np.float64], label_rows: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Of each word under each label: its share of the label's texts, with one more text of average words added."""
        return np.asarray(np.log((counts + PRIOR_TEXTS * self.frequency[text]) / (label_rows + PRIOR_TEXTS)))

    def _place(self, scores: NDArray[np.float64], label: int) -> float:
        """The share of other labels with a lower score, ties counted half: 1.0 where the text fits `label` best."""
        below = (scores < scores[label] - 1e-9).sum()
        level = (np.abs(scores - scores[label]) <= 1e-9).sum() - 1
        return float((below + 0.5 * level) / (self.labels - 1))


def _binomial_tail(successes: int, trials: int, probability: float) -> float:
    """P(X <= successes)."""
    return sum(math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(successes + 1))
