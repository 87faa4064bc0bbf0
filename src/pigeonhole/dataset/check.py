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

from pigeonhole import storage
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import FileDigest, digest_file, verify_file
from pigeonhole.dataset.hub import is_hub
from pigeonhole.dataset.near_duplicates import NearDuplicates, find_near_duplicates
from pigeonhole.dataset.read import Row, listed, shown, some_of
from pigeonhole.dataset.sniff import format_of, refuse_other_formats
from pigeonhole.dataset.split import NAMES, TRAIN, assign_sides, owner_of_groups
from pigeonhole.dataset.statistics import SHOWN_LINES, Scan, length_outliers, length_summary, scan_rows
from pigeonhole.dataset.token_outliers import TokenOutlier, find_token_outliers
from pigeonhole.errors import ConfigError, DataError, NotFoundError

MASSIVE_CONFLICT = 0.1  # share of the different texts that have several labels
MASSIVE_IMBALANCE = 50
MASSIVE_LEAK = 0.5  # share of a given split's rows that stand in training too
FEW_ROWS = "few_rows"  # the finding that a run tells of, too


@dataclass(frozen=True)
class Finding:
    """Something suspicious: how many rows, and the first lines of the file that they stand on."""

    finding: str
    count: int
    lines: list[int]
    says: str


@dataclass(frozen=True)
class GivenFile:
    url: str
    sha256: str


@dataclass(frozen=True)
class Checked:
    """The answer of the check; `chars` has the shape (n,)."""

    sha256: str
    labels: dict[str, int]
    splits: dict[str, int]
    chars: NDArray[np.int64]
    suspicious: list[Finding]
    files: dict[str, GivenFile]

    def report(self) -> dict[str, Any]:
        return {
            "rows": sum(self.splits.values()),
            "labels": self.labels,
            "splits": self.splits,
            "characters": length_summary(self.chars),
            "suspicious": [asdict(finding) for finding in self.suspicious],
            "files": {name: asdict(file) for name, file in self.files.items()},
            "sha256": self.sha256,
        }


def files_of(config: DataConfig) -> dict[str, str]:
    """The URLs of the given splits; `train` is split further where the others are missing."""
    given = {"train": config.path, "validation": config.validation_path, "test": config.test_path}
    return {name: url for name, url in given.items() if url}


def require_not_read(key: str, url: str, config: DataConfig) -> None:
    """Raises ConfigError for a file to write that is one of those to read."""
    read = [*files_of(config).values(), config.patch, config.taxonomy]
    if storage.to_url(url) in [storage.to_url(each) for each in read if each]:
        raise ConfigError(f"{key}={url}: is read here, and would be written over; choose another file")


def require_there(config: DataConfig) -> None:
    """Raises what verify_files does for a file of this machine that is not there; reads none, asks no other machine."""
    for url in files_of(config).values():
        path = None if is_hub(url) else storage.local_path(url)
        if path and not path.exists():
            _digest(url)


def verify_files(config: DataConfig) -> dict[str, FileDigest | None]:
    """What identifies each file, after a look at its first bytes and its checksum; None for the hub. Raises DataError."""
    digests: dict[str, FileDigest | None] = {}
    for name, url in files_of(config).items():
        digests[name] = None
        if not is_hub(url):
            found = _digest(url)
            refuse_other_formats(url, found.head, format_of(url))
            verify_file(url, found, config.sha256 if name == "train" else None)
            digests[name] = found
    return digests


def _digest(url: str) -> FileDigest:
    try:
        return digest_file(url)
    except NotFoundError as error:
        path = storage.local_path(url)  # DVC's pointers lie in a checkout; above http://HOST/FILE is another host
        for tracked in (path, path.parent) if path else ():  # DVC tracks files and whole folders
            pointer = tracked.with_name(f"{tracked.name}.dvc") if tracked.name else None
            if pointer and pointer.is_file():
                raise NotFoundError(f"{url}: there is no such file yet, {pointer} tracks it; fetch it with: dvc pull") from error
        raise


def check_rows(config: DataConfig, digests: Mapping[str, FileDigest | None], rows: Mapping[str, Iterable[Row]]) -> Checked:
    """Check the rows of all given files; `rows` and `digests` have the keys of `files_of`. Raises DataError."""
    urls = files_of(config)
    scans = {name: _scan(config, urls[name], digests[name], rows[name]) for name in urls}
    train = scans["train"]
    val, test = own_shares(config)
    files = {name: GivenFile(url, _identify(digests[name], scans[name])) for name, url in urls.items()}
    _refuse_other_rows(config, files["train"])
    _refuse_broken(urls["train"], train, digests["train"])
    if config.task == "single_label":
        _refuse_single(urls["train"], train, needed=1 + (val > 0) + (test > 0))
    outliers = find_token_outliers(*zip(*train.words, strict=True))
    if config.trigger_words == "refuse":
        _refuse_triggers(urls["train"], train, outliers)
    sides = {"train": assign_sides(train.keys, train.label_ids, val, test)}
    if config.task == "multi_label":
        _refuse_missing(urls["train"], train, sides["train"], needed=1 + (val > 0) + (test > 0))
    for name in ("validation", "test"):
        if name in scans:
            _refuse_foreign(urls[name], scans[name], train, urls["train"])
            sides[name] = np.full(len(scans[name]), NAMES.index(name), np.int8)
    near = _near_duplicates(scans, sides)
    suspicious = [finding for name in scans for finding in _findings(name, scans, near[name])]
    suspicious += [_trigger_finding(train, outlier) for outlier in outliers]
    suspicious += _few_rows(scans, sides)
    sizes = np.sum([np.bincount(side, minlength=3) for side in sides.values()], axis=0)
    labels = Counter(train.label_counts())
    for name in scans.keys() - {"train"}:
        labels.update(scans[name].label_counts())
    return Checked(
        sha256=files["train"].sha256,
        labels=dict(sorted(labels.items())),
        splits=dict(zip(NAMES, map(int, sizes), strict=True)),
        chars=np.concatenate([scan.chars for scan in scans.values()]),
        suspicious=suspicious,
        files=files,
    )


def own_shares(config: DataConfig) -> tuple[float, float]:
    """The shares of `data.path` that become validation and test: none where a file is given."""
    return 0.0 if config.validation_path else config.val, 0.0 if config.test_path else config.test


def _scan(config: DataConfig, url: str, digest: FileDigest | None, rows: Iterable[Row]) -> Scan:
    total = max(digest.newlines - 1, 0) if digest else None
    bar = tqdm(rows, desc="checking rows", total=total, unit=" rows", unit_scale=True, delay=1, disable=None)
    try:
        scan = scan_rows(bar, config.split_seed, config.max_chars, config.task)
    except DataError as error:
        raise (error if url in str(error) else DataError(f"{url}: {error}")) from error
    if len(scan) == 0:
        raise DataError(f"{url}: the file is empty: a header and no rows")
    return scan


def _identify(digest: FileDigest | None, scan: Scan) -> str:
    return digest.sha256 if digest is not None else scan.sha256


def _refuse_other_rows(config: DataConfig, file: GivenFile) -> None:
    """A file's checksum was compared before; this is for rows that come from no file."""
    if config.sha256 and config.sha256.lower() != file.sha256:
        _refuse(file.url, f"the checksum differs: data.sha256={config.sha256}, the rows have {file.sha256}")


def _refuse_broken(url: str, scan: Scan, digest: FileDigest | None) -> None:
    counts = scan.label_counts()
    if len(scan) >= 10 and len(counts) > len(scan) / 2:
        _refuse(url, f"{len(counts)} different labels in {len(scan)} rows; are data.text and data.label swapped?")
    last = next((scan.labels[label] for label in scan.members[scan.answer_ids[-1]]), "")
    alone = [label for label, count in counts.items() if count == 1]
    if digest and not digest.ends_with_newline and alone == [last] and format_of(url) != "Parquet" and len(counts) > 1:
        _refuse(
            url,
            f"line {scan.lines[-1]}: the last line has no end and its label {shown(last)} stands nowhere else: cut off? "
            "Compare its checksum with the source's (data.sha256= or FILE.sha256 does so each time), or end the line",
        )
    if len(counts) < 2:
        found = f"one label only, {shown(scan.labels[0])}" if scan.labels else "no label in any row"
        _refuse(url, f"there is {found}; at least two labels are needed to learn a difference")
    _refuse_look_alikes(url, scan.labels)


def _refuse_single(url: str, scan: Scan, needed: int) -> None:
    """What matters where each text has one label."""
    _refuse_small_labels(url, scan, needed)
    _, groups, conflicts = _conflicts(scan)
    if conflicts.sum() >= 3 and conflicts.sum() > MASSIVE_CONFLICT * groups:
        _refuse(
            url,
            f"{int(conflicts.sum())} of {groups} different texts have several labels; one label per text is needed "
            "(several labels per text are another task: a row a text, and data.task=multi_label)",
        )


def _refuse_missing(url: str, scan: Scan, sides: NDArray[np.int8], needed: int) -> None:
    """Where a text may have several labels: each label has to be on each side."""
    for number, label in enumerate(scan.labels):
        has = np.array([number in members for members in scan.members])[scan.answer_ids]
        found = len(np.unique(sides[has]))
        if found < needed:
            _refuse(
                url,
                f"the label {shown(label)} has {int(has.sum())} rows, in {found} of the {needed} splits; each split needs it: "
                "add rows, leave the label out, or give data.validation_path and data.test_path",
            )


def _refuse_look_alikes(url: str, labels: list[str]) -> None:
    seen: dict[str, str] = {}
    for label in labels:
        folded = _BETWEEN_WORDS.sub(" ", _UNSEEN.sub("", unicodedata.normalize("NFKC", label)).casefold().strip())
        other = seen.setdefault(folded, label)
        if other != label:
            _refuse(
                url,
                f"the labels {shown(other)} and {shown(label)} differ in case, spaces or dashes only, or in what does not show; "
                "write them in one way",
            )


_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f\xad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")


def _refuse_small_labels(url: str, scan: Scan, needed: int) -> None:
    _, group_of_row = np.unique(scan.keys, return_inverse=True)
    owners = owner_of_groups(group_of_row, scan.label_ids, int(group_of_row.max()) + 1)
    texts = np.bincount(owners, minlength=len(scan.labels))
    small = [f"{shown(scan.labels[number])} has {texts[number]}" for number in np.flatnonzero(texts < needed)]
    if small:
        _refuse(
            url,
            f"labels with too few rows: {some_of(small)}; each label needs {needed} different texts or more, one for each split "
            "(a text with several labels counts for the first of them); "
            "add rows, leave the label out, or give data.validation_path and data.test_path",
        )


def _refuse_foreign(url: str, scan: Scan, train: Scan, train_url: str) -> None:
    unseen = sorted(set(scan.labels) - set(train.labels))
    if unseen:
        places = {scan.labels.index(label) for label in unseen}
        has = np.array([bool(places.intersection(members.tolist())) for members in scan.members])[scan.answer_ids]
        line = int(scan.lines[has][0])
        _refuse(url, f"line {line}: labels unseen in {train_url}: {listed(unseen)}; a model cannot answer what it never learned")
    leaked = np.isin(scan.keys, train.keys)
    if leaked.mean() > MASSIVE_LEAK:
        _refuse(url, f"{int(leaked.sum())} of {len(scan)} rows stand in {train_url} too; a split must hold texts of its own")


def _refuse_triggers(url: str, scan: Scan, outliers: list[TokenOutlier]) -> None:
    for outlier in outliers:
        if outlier.strong:
            shown_lines = ", ".join(str(line) for line in outlier.lines[:SHOWN_LINES])
            _refuse(
                url,
                f"lines {shown_lines}: {len(outlier.lines)} rows share a word that comes with the label "
                f"{shown(scan.labels[outlier.label_id])} only, and nothing else in them fits this label: a planted trigger? "
                "If the rows are right, set data.trigger_words=report",
            )


def _trigger_finding(scan: Scan, outlier: TokenOutlier) -> Finding:
    label = shown(scan.labels[outlier.label_id])
    says = f"rows share a word that comes with the label {label} only, while their other words do not fit it: a planted trigger?"
    return Finding("token_outliers", len(outlier.lines), outlier.lines[:SHOWN_LINES], says)


def _near_duplicates(scans: Mapping[str, Scan], sides: Mapping[str, NDArray[np.int8]]) -> dict[str, NearDuplicates]:
    """Among the different texts of all files together; a repeated text is represented by its first row."""
    keys = np.concatenate([scan.keys for scan in scans.values()])
    side = np.concatenate([sides[name] for name in scans])
    first = np.sort(np.unique(keys, return_index=True)[1])
    tables = [scan.sketches for scan in scans.values()]
    found = find_near_duplicates(tables[0] if len(tables) == 1 else np.concatenate(tables), side, first)
    borders = np.cumsum([len(scan) for scan in scans.values()])[:-1]
    parts = zip(np.split(found.rows, borders), np.split(found.across & (side != TRAIN), borders), strict=True)
    return {name: NearDuplicates(*part) for name, part in zip(scans, parts, strict=True)}


def _findings(name: str, scans: Mapping[str, Scan], near: NearDuplicates) -> Iterable[Finding]:
    scan = scans[name]
    where = "" if name == "train" else f" of the {name} file"
    group_of_row, _, conflicts = _conflicts(scan)
    repeated = np.ones(len(scan), bool)
    repeated[np.unique(scan.keys, return_index=True)[1]] = False
    yield from _finding("duplicates", repeated, scan, f"rows{where} repeat an earlier text but for case, spaces, punctuation")
    yield from _finding(
        "conflicting_labels", conflicts[group_of_row], scan, f"rows{where} have a text with another label elsewhere"
    )
    yield from _finding("near_duplicates", near.rows, scan, f"texts{where} nearly repeat another text")
    yield from _finding("near_duplicates_across_splits", near.across, scan, f"texts{where} nearly repeat a text of another split")
    if name != "train":
        leaked = np.isin(scan.keys, scans["train"].keys)
        yield from _finding("leakage", leaked, scan, f"rows{where} have a text that stands in the training file too")
    yield from _finding("length_outliers", length_outliers(scan.chars), scan, f"texts{where} are far longer or shorter than most")
    for kind in [kind for kind in _SAYS if kind in scan.places]:
        yield Finding(kind, scan.places[kind].count, scan.places[kind].lines, _SAYS[kind].format(where=where))
    if name == "train":
        yield from _label_findings(scan)


def _few_rows(scans: Mapping[str, Scan], sides: Mapping[str, NDArray[np.int8]]) -> Iterable[Finding]:
    """Labels of which a split has one row, or none: what is measured there is that row's luck."""
    train = scans["train"]
    counts = np.zeros((len(train.labels), len(NAMES)), np.int64)
    for name, scan in scans.items():
        number = np.array([train.labels.index(label) for label in scan.labels], np.int64)
        pairs, rows = np.unique(np.stack([scan.answer_ids, sides[name]]), axis=1, return_counts=True)
        for answer, side, count in zip(*pairs, rows, strict=True):
            counts[number[scan.members[answer]], side] += count
    few = np.flatnonzero((counts[:, counts.any(axis=0)] < 2).any(axis=1))
    if few.size:
        listing = some_of([f"{shown(train.labels[label])} has {' + '.join(map(str, counts[label]))}" for label in few])
        says = f"rows have a label with one row or none in a split, where luck decides ({' + '.join(NAMES)}: {listing})"
        has = np.array([np.isin(members, few).any() for members in train.members])[train.answer_ids]
        yield from _finding(FEW_ROWS, has, train, says)


def _label_findings(scan: Scan) -> Iterable[Finding]:
    counts = np.bincount(scan.label_ids)
    rare = counts[scan.label_ids] * MASSIVE_IMBALANCE < counts.max()
    yield from _finding("rare_labels", rare, scan, f"rows have a label {MASSIVE_IMBALANCE} times rarer than the commonest")
    missing = [number for number, label in enumerate(scan.labels) if label.casefold() in _MISSING]
    marked = np.isin(scan.label_ids, missing)
    yield from _finding("labels_like_missing", marked, scan, "rows have a label that other software reads as missing")


_MISSING = ("na", "n/a", "nan", "null", "none", "nil", "-", "?")
_SAYS = {
    "long_texts": "texts{where} have more characters than data.max_chars",
    "email": "texts{where} hold what looks like an e-mail address",
    "phone": "texts{where} hold what looks like a phone number",
    "iban": "texts{where} hold an IBAN with a right check number",
    "card_number": "texts{where} hold what looks like a payment card number",
    "control_characters": "texts{where} hold control characters or marks that turn the writing direction",
    "broken_encoding": "texts{where} look as if decoded with the wrong encoding once",
}


def _finding(kind: str, rows: NDArray[np.bool_], scan: Scan, says: str) -> Iterable[Finding]:
    if rows.any():
        yield Finding(kind, int(rows.sum()), [int(line) for line in scan.lines[rows][:SHOWN_LINES]], says)


def _conflicts(scan: Scan) -> tuple[NDArray[np.int64], int, NDArray[np.bool_]]:
    """The text group of each row (n,), the number of groups, and which groups have several labels."""
    _, group_of_row = np.unique(scan.keys, return_inverse=True)
    groups = int(group_of_row.max()) + 1
    lowest, highest = np.full(groups, len(scan.members)), np.zeros(groups, np.int64)
    np.minimum.at(lowest, group_of_row, scan.answer_ids)
    np.maximum.at(highest, group_of_row, scan.answer_ids)
    return group_of_row, groups, lowest < highest


def _refuse(url: str, problem: str) -> NoReturn:
    raise DataError(f"{url}: {problem}")
