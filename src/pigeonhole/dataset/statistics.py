"""What is kept of each row while the rows pass by: an 8-byte key, a sketch of 128 bytes, its length, and the first places of what
looks odd. Of 20,000 rows the set of their words is kept as well, until the check is done; texts never.
"""

import hashlib
import re
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pigeonhole.dataset.digest import normalise, text_key
from pigeonhole.dataset.label_sets import members_of, owners_of
from pigeonhole.dataset.near_duplicates import Sketches
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.token_outliers import WordSample
from pigeonhole.errors import DataError
from pigeonhole.personal_data import kinds_of

MAX_LABELS = 10_000
SHOWN_LINES = 5


@dataclass
class Places:
    """How often something was seen, and the first lines."""

    count: int = 0
    lines: list[int] = field(default_factory=list)

    def add(self, line: int) -> None:
        self.count += 1
        if len(self.lines) < SHOWN_LINES:
            self.lines.append(line)


@dataclass(frozen=True)
class Scan:
    """The rows of one file, in their order: arrays of shape (n,), and `labels`, sorted, that `label_ids` number.

    Where a row may have several labels, `label_ids` is the one that it counts for (label_sets.py), len(labels) where it has none.
    `answer_ids` number what a row has as a whole.
    """

    labels: list[str]
    label_ids: NDArray[np.int64]
    answer_ids: NDArray[np.int64]
    members: list[NDArray[np.int64]]  # of each answer the label ids
    keys: NDArray[np.uint64]
    lines: NDArray[np.int64]
    chars: NDArray[np.int64]
    sketches: NDArray[np.uint16]  # (n, 64)
    words: list[tuple[int, int, frozenset[str]]]  # label id, line and words of some rows
    places: dict[str, Places]
    sha256: str  # of texts and labels, in order: what identifies rows that come from no file

    def __len__(self) -> int:
        return len(self.keys)

    def label_counts(self) -> dict[str, int]:
        counts = np.zeros(len(self.labels), np.int64)
        for members, rows in zip(self.members, np.bincount(self.answer_ids, minlength=len(self.members)), strict=True):
            counts[members] += rows
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}


def scan_rows(rows: Iterable[Row], split_seed: int, max_chars: int, task: str = "single_label") -> Scan:
    """Let the rows pass by once. Raises DataError for more than 10,000 labels (of several a row: sets of labels)."""
    keys, answer_numbers, lines, chars = array("Q"), array("q"), array("q"), array("q")
    numbers: dict[str, int] = {}
    places: dict[str, Places] = defaultdict(Places)
    key_of, sha256, sketches, sample = text_key(split_seed), hashlib.sha256(), _Batched(Sketches()), WordSample()
    for row in rows:
        number = numbers.setdefault(row.label, len(numbers))
        if number == MAX_LABELS:
            what = "sets of labels" if task == "multi_label" else "labels"
            raise DataError(f"line {row.line}: more than {MAX_LABELS:,} {what}; are data.text and data.label swapped?")
        text = normalise(row.text)
        key = key_of(text)
        keys.append(key)
        answer_numbers.append(number)
        lines.append(row.line)
        chars.append(len(row.text))
        sketches.add(text)
        sample.add(key, number, row.line, text)
        sha256.update(f"{row.text}\0{row.label}\0".encode())
        for kind in _oddities(row.text, max_chars):
            places[kind].add(row.line)
    answers = np.frombuffer(answer_numbers, np.int64)
    labels, members = members_of(list(numbers), task)
    owners = owners_of(members, np.bincount(answers, minlength=len(members)), len(labels))
    return Scan(
        labels=labels,
        label_ids=owners[answers],
        answer_ids=answers,
        members=members,
        keys=np.frombuffer(keys, np.uint64),
        lines=np.frombuffer(lines, np.int64),
        chars=np.frombuffer(chars, np.int64),
        sketches=sketches.table(),
        words=[(int(owners[number]), line, words) for number, line, words in sample.rows() if len(members[number])],
        places=dict(places),
        sha256=sha256.hexdigest(),
    )


class _Batched:
    """Sketches half a million characters at a time: the arithmetic is numpy's."""

    def __init__(self, sketches: Sketches) -> None:
        self._sketches, self._texts, self._chars = sketches, list[str](), 0

    def add(self, text: str) -> None:
        self._texts.append(text)
        self._chars += len(text)
        if self._chars > 500_000:
            self._flush()

    def table(self) -> NDArray[np.uint16]:
        self._flush()
        return self._sketches.table()

    def _flush(self) -> None:
        if self._texts:
            self._sketches.add(self._texts)
        self._texts, self._chars = [], 0


def _oddities(text: str, max_chars: int) -> Iterator[str]:
    if len(text) > max_chars:
        yield "long_texts"
    yield from kinds_of(text)
    if not text.isprintable() and _CONTROL.search(text):
        yield "control_characters"
    if not text.isascii() and _MOJIBAKE.search(text):
        yield "broken_encoding"


_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff]")
_MOJIBAKE = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")


def length_summary(chars: NDArray[np.int64]) -> dict[str, float]:
    """Characters per text."""
    names = ("min", "median", "p95", "p99", "max")
    values = np.percentile(chars, [0, 50, 95, 99, 100])
    return {**{name: float(value) for name, value in zip(names, values, strict=True)}, "mean": round(float(chars.mean()), 1)}


def length_outliers(chars: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Texts whose log length is more than 5 robust standard deviations (1.4826 x the median distance) from the median."""
    logs = np.log(chars)
    distance = np.abs(logs - np.median(logs))
    deviation = max(1.4826 * float(np.median(distance)), 0.3)  # in sets of one length a factor of 4.5 is still ordinary
    return np.asarray(distance > 5 * deviation)
