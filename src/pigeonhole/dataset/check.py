"""Is this data set fit to train on? Refuses what is broken, with a DataError; reports what is suspicious, as findings.

Knows the rows only as they pass by (statistics.py), so a million of them fit in little memory. No message shows a text.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import FileDigest, digest_file, verify_file
from pigeonhole.dataset.hub import is_hub
from pigeonhole.dataset.read import Row, format_of, listed, shown
from pigeonhole.dataset.sniff import refuse_other_formats
from pigeonhole.dataset.split import NAMES, assign_sides, owner_of_groups
from pigeonhole.dataset.statistics import SHOWN_LINES, Scan, length_outliers, length_summary, scan_rows
from pigeonhole.errors import DataError

MASSIVE_CONFLICT = 0.1  # share of the different texts that have several labels
MASSIVE_LEAK = 0.5  # share of a given split's rows that stand in training too


@dataclass(frozen=True)
class Finding:
    """Something suspicious: how many rows, and the first lines of the file that they stand on."""

    finding: str
    count: int
    lines: list[int]
    says: str


@dataclass(frozen=True)
class Checked:
    """The answer of the check; `chars` has the shape (n,)."""

    sha256: str
    labels: dict[str, int]
    splits: dict[str, int]
    chars: NDArray[np.int64]
    suspicious: list[Finding]
    files: dict[str, str]

    def report(self) -> dict[str, Any]:
        return {
            "rows": sum(self.splits.values()),
            "labels": self.labels,
            "splits": self.splits,
            "characters": length_summary(self.chars),
            "suspicious": [asdict(finding) for finding in self.suspicious],
            "files": self.files,
            "sha256": self.sha256,
        }


def files_of(config: DataConfig) -> dict[str, str]:
    """The URLs of the given splits; `train` is split further where the others are missing."""
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    return {name: url for name, url in given.items() if url}


def verify_files(config: DataConfig) -> dict[str, FileDigest | None]:
    """What identifies each file, after a look at its first bytes and its checksum; None for the hub. Raises DataError."""
    digests: dict[str, FileDigest | None] = {}
    for name, url in files_of(config).items():
        digests[name] = None
        if not is_hub(url):
            found = digest_file(url)
            refuse_other_formats(url, found.head, format_of(url))
            verify_file(url, found, config.sha256 if name == "train" else None)
            digests[name] = found
    return digests


def check_rows(config: DataConfig, digests: Mapping[str, FileDigest | None], rows: Mapping[str, Iterable[Row]]) -> Checked:
    """Check the rows of all given files; `rows` and `digests` have the keys of `files_of`. Raises DataError."""
    urls = files_of(config)
    scans = {name: _scan(config, urls[name], digests[name], rows[name]) for name in urls}
    train = scans["train"]
    val, test = own_shares(config)
    sha256 = _identify(config, digests["train"], train)
    _refuse_broken(urls["train"], train, digests["train"], needed=1 + (val > 0) + (test > 0))
    sides = {"train": assign_sides(train.keys, train.label_ids, val, test)}
    for name in ("validation", "test"):
        if name in scans:
            _refuse_foreign(urls[name], scans[name], train, urls["train"])
            sides[name] = np.full(len(scans[name]), NAMES.index(name), np.int8)
    suspicious = [finding for name in scans for finding in _findings(name, scans)]
    sizes = np.sum([np.bincount(side, minlength=3) for side in sides.values()], axis=0)
    labels = Counter(train.label_counts())
    for name in scans.keys() - {"train"}:
        labels.update(scans[name].label_counts())
    return Checked(
        sha256=sha256,
        labels=dict(sorted(labels.items())),
        splits=dict(zip(NAMES, map(int, sizes), strict=True)),
        chars=np.concatenate([scan.chars for scan in scans.values()]),
        suspicious=suspicious,
        files=urls,
    )


def own_shares(config: DataConfig) -> tuple[float, float]:
    """The shares of `data.path` that become validation and test: none where a file is given."""
    return 0.0 if config.validation_path else config.val, 0.0 if config.test_path else config.test


def _scan(config: DataConfig, url: str, digest: FileDigest | None, rows: Iterable[Row]) -> Scan:
    total = max(digest.newlines - 1, 0) if digest else None
    bar = tqdm(rows, desc="checking rows", total=total, unit=" rows", unit_scale=True, delay=1, disable=None)
    try:
        scan = scan_rows(bar, config.split_seed, config.max_chars)
    except DataError as error:
        raise (error if url in str(error) else DataError(f"{url}: {error}")) from error
    if len(scan) == 0:
        raise DataError(f"{url}: the file is empty: a header and no rows")
    return scan


def _identify(config: DataConfig, digest: FileDigest | None, scan: Scan) -> str:
    if digest is not None:
        return digest.sha256
    if config.sha256 and config.sha256.lower() != scan.sha256:
        raise DataError(f"{config.path}: the checksum differs: data.sha256={config.sha256}, the rows have {scan.sha256}")
    return scan.sha256


def _refuse_broken(url: str, scan: Scan, digest: FileDigest | None, needed: int) -> None:
    counts = scan.label_counts()
    if len(scan) >= 10 and len(counts) > len(scan) / 2:
        _refuse(url, f"{len(counts)} different labels in {len(scan)} rows; are data.text and data.label swapped?")
    last = scan.labels[scan.label_ids[-1]]
    alone = [label for label, count in counts.items() if count == 1]
    if digest and not digest.ends_with_newline and alone == [last] and format_of(url) != "Parquet" and len(counts) > 1:
        _refuse(
            url,
            f"line {scan.lines[-1]}: the last line has no end and its label {shown(last)} stands nowhere else: cut off? "
            "Compare its checksum with the source's (data.sha256= or FILE.sha256 does so each time), or end the line",
        )
    if len(counts) == 1:
        _refuse(url, f"there is one label only, {shown(last)}; at least two labels are needed to learn a difference")
    _refuse_look_alikes(url, scan.labels)
    _refuse_small_labels(url, scan, needed)
    _, groups, conflicts = _conflicts(scan)
    if conflicts.sum() >= 3 and conflicts.sum() > MASSIVE_CONFLICT * groups:
        _refuse(
            url,
            f"{int(conflicts.sum())} of {groups} different texts have several labels; one label per text is needed "
            "(several labels per text are another task)",
        )


def _refuse_look_alikes(url: str, labels: list[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        folded = _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", label).casefold().strip())
        other = seen.setdefault(folded, label)
        if other != label:
            _refuse(
                url, f"the labels {shown(other)} and {shown(label)} differ in case, spaces or dashes only; write them in one way"
            )


_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")


def _refuse_small_labels(url: str, scan: Scan, needed: int) -> None:
    _, group_of_row = np.unique(scan.keys, return_inverse=True)
    owners = owner_of_groups(group_of_row, scan.label_ids, int(group_of_row.max()) + 1)
    texts = np.bincount(owners, minlength=len(scan.labels))
    small = [f"{shown(scan.labels[number])} has {texts[number]}" for number in np.flatnonzero(texts < needed)]
    if small:
        listing = ", ".join(small[:SHOWN_LINES]) + (f" and {len(small) - SHOWN_LINES} more" if len(small) > SHOWN_LINES else "")
        _refuse(
            url,
            f"labels with too few rows: {listing}; each label needs {needed} different texts or more, one for each split; "
            "add rows, leave the label out, or give data.validation_path and data.test_path",
        )


def _refuse_foreign(url: str, scan: Scan, train: Scan, train_url: str) -> None:
    unseen = sorted(set(scan.labels) - set(train.labels))
    if unseen:
        line = int(scan.lines[np.isin(scan.label_ids, [scan.labels.index(label) for label in unseen])][0])
        _refuse(url, f"line {line}: labels unseen in {train_url}: {listed(unseen)}; a model cannot answer what it never learned")
    leaked = np.isin(scan.keys, train.keys)
    if leaked.mean() > MASSIVE_LEAK:
        _refuse(url, f"{int(leaked.sum())} of {len(scan)} rows stand in {train_url} too; a split must hold texts of its own")


def _findings(name: str, scans: Mapping[str, Scan]) -> Iterable[Finding]:
    scan = scans[name]
    where = "" if name == "train" else f" of the {name} file"
    lines_of = {name: places.lines for name, places in scan.places.items()}
    group_of_row, _, conflicts = _conflicts(scan)
    repeated = np.ones(len(scan), bool)
    repeated[np.unique(scan.keys, return_index=True)[1]] = False
    yield from _finding("duplicates", repeated, scan, f"rows{where} that repeat an earlier text (case and spaces aside)")
    yield from _finding(
        "conflicting_labels", conflicts[group_of_row], scan, f"rows{where} whose text has another label elsewhere"
    )
    if name != "train":
        leaked = np.isin(scan.keys, scans["train"].keys)
        yield from _finding("leakage", leaked, scan, f"rows{where} whose text stands in the training file too")
    yield from _finding(
        "length_outliers", length_outliers(scan.chars), scan, f"texts{where} far longer or shorter than the others"
    )
    for kind, places in scan.places.items():
        if places.count:
            yield Finding(kind, places.count, lines_of[kind], f"{_SAYS[kind]}{where}")


_SAYS = {"long_texts": "texts with more characters than data.max_chars"}


def _finding(kind: str, rows: NDArray[np.bool_], scan: Scan, says: str) -> Iterable[Finding]:
    if rows.any():
        yield Finding(kind, int(rows.sum()), [int(line) for line in scan.lines[rows][:SHOWN_LINES]], says)


def _conflicts(scan: Scan) -> tuple[NDArray[np.int64], int, NDArray[np.bool_]]:
    """The text group of each row (n,), the number of groups, and which groups have several labels."""
    _, group_of_row = np.unique(scan.keys, return_inverse=True)
    groups = int(group_of_row.max()) + 1
    lowest, highest = np.full(groups, len(scan.labels)), np.zeros(groups, np.int64)
    np.minimum.at(lowest, group_of_row, scan.label_ids)
    np.maximum.at(highest, group_of_row, scan.label_ids)
    return group_of_row, groups, lowest < highest


def _refuse(url: str, problem: str) -> NoReturn:
    raise DataError(f"{url}: {problem}")
