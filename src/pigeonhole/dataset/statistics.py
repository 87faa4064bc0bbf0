"""What is kept of each row while the rows pass by: 8-byte keys, lengths, counts and the first places; never a text."""

import hashlib
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pigeonhole.dataset.digest import normalise, text_key
from pigeonhole.dataset.read import Row
from pigeonhole.errors import DataError

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
    """The rows of one file, in their order: arrays of shape (n,), and `labels`, sorted, that `label_ids` number."""

    labels: list[str]
    label_ids: NDArray[np.int64]
    keys: NDArray[np.uint64]
    lines: NDArray[np.int64]
    chars: NDArray[np.int64]
    places: dict[str, Places]
    sha256: str  # of texts and labels, in order: what identifies rows that come from no file

    def __len__(self) -> int:
        return len(self.keys)

    def label_counts(self) -> dict[str, int]:
        counts = np.bincount(self.label_ids, minlength=len(self.labels))
        return {label: int(count) for label, count in zip(self.labels, counts, strict=True)}


def scan_rows(rows: Iterable[Row], split_seed: int, max_chars: int) -> Scan:
    """Let the rows pass by once. Raises DataError for more than 10,000 labels."""
    keys, label_ids, lines, chars = array("Q"), array("i"), array("q"), array("q")
    numbers: dict[str, int] = {}
    key, sha256 = text_key(split_seed), hashlib.sha256()
    places = {"long_texts": Places()}
    for row in rows:
        number = numbers.setdefault(row.label, len(numbers))
        if number == MAX_LABELS:
            raise DataError(f"line {row.line}: more than {MAX_LABELS:,} labels; are data.text and data.label swapped?")
        keys.append(key(normalise(row.text)))
        label_ids.append(number)
        lines.append(row.line)
        chars.append(len(row.text))
        sha256.update(f"{row.text}\0{row.label}\0".encode())
        if len(row.text) > max_chars:
            places["long_texts"].add(row.line)
    labels = sorted(numbers)
    sorted_number = np.empty(len(labels), np.int64)
    for place, label in enumerate(labels):
        sorted_number[numbers[label]] = place
    ids = sorted_number[np.frombuffer(label_ids, np.int32)] if labels else np.zeros(0, np.int64)
    columns = (np.frombuffer(keys, np.uint64), np.frombuffer(lines, np.int64), np.frombuffer(chars, np.int64))
    return Scan(labels, ids, *columns, places, sha256.hexdigest())


def length_summary(chars: NDArray[np.int64]) -> dict[str, float]:
    """Characters per text."""
    names = ("min", "median", "p95", "p99", "max")
    values = np.percentile(chars, [0, 50, 95, 99, 100])
    return {**{name: float(value) for name, value in zip(names, values, strict=True)}, "mean": round(float(chars.mean()), 1)}


def length_outliers(chars: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Texts whose log length is more than 5 robust standard deviations (1.4826 x the median distance) from the median."""
    logs = np.log(chars)
    distance = np.abs(logs - np.median(logs))
    deviation = max(1.4826 * float(np.median(distance)), 0.1)
    return np.asarray(distance > 5 * deviation)
