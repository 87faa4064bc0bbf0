"""A reviewed file of `label-errors`: what a person decided about labels, applied to the rows as they are read.

Promises: every decision fits a row exactly (text and label) or the file is refused, so that none is lost when the data changes;
rows without a decision pass untouched. The data file itself is never written to.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pigeonhole import storage
from pigeonhole.dataset.digest import digest_file, verify_file
from pigeonhole.dataset.read import Row, shown
from pigeonhole.dataset.sniff import delimited
from pigeonhole.errors import DataError

SIGNS = "=+\\-@\uff1d\uff0b\uff0d\uff20"  # with which a cell begins that a spreadsheet computes
# One that divides columns otherwise than the file does cuts a cell in pieces: behind each mark a new one may begin.
_COMPUTED = rf"""\A{{}}(?=[ '"]*[{SIGNS}\t\r\n])|(?<=[;\t\r\n]){{}}(?=[ '"]*[{SIGNS}])"""
_BARE, _GUARDED = (re.compile(_COMPUTED.format(guard, guard)) for guard in ("", "'"))
COLUMNS = ("text", "label", "suggestion", "confidence", "decision", "new_label")
DECISIONS = ("", "keep", "relabel", "remove")  # empty: nobody has looked at it yet

Key = tuple[str, str]  # text, label as it stands in the data


@dataclass(frozen=True)
class Patch:
    url: str
    sha256: str
    relabelled: dict[Key, str]  # the label that is right
    removed: frozenset[Key]
    kept: frozenset[Key]

    def apply(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Raises DataError, when all rows have passed, for a decision that fits none of them or a label that none of them has."""
        unmet = {*self.relabelled, *self.removed, *self.kept}
        labels: set[str] = set()
        for row in rows:
            key = (row.text, row.label)
            labels.add(row.label)
            unmet.discard(key)
            if key not in self.removed:
                yield Row(row.text, self.relabelled.get(key, row.label), row.line)
        if unmet:
            some = ", ".join(sorted({shown(label) for _, label in unmet})[:3])
            raise DataError(
                f"{self.url}: {len(unmet)} of its decisions fit no row (labels {some}): the data has changed since the review; "
                "run uv run label-errors again, or take these lines out"
            )
        unknown = sorted(set(self.relabelled.values()) - labels)
        if unknown:
            raise DataError(
                f"{self.url}: new_label {shown(unknown[0])} is no label of the data; a new one comes by data.taxonomy"
            )

    def report(self) -> dict[str, object]:
        counts = {"relabelled": len(self.relabelled), "removed": len(self.removed), "kept": len(self.kept)}
        return {"file": self.url, "sha256": self.sha256, **counts}


def read_patch(url: str, sha256: str | None) -> Patch:
    """Raises DataError for a line that is no decision, NotFoundError, StorageError."""
    found = digest_file(url)
    verify_file(url, found, sha256, "data.patch_sha256")
    relabelled: dict[Key, str] = {}
    removed: set[Key] = set()
    kept: set[Key] = set()
    try:
        lines, delimiter = delimited(io.StringIO(storage.read(url).decode("utf-8-sig"), newline=""))
        reader = csv.DictReader(lines, delimiter=delimiter, strict=True)
        missing = {"text", "label", "decision", "new_label"} - set(reader.fieldnames or ())
        if missing:
            raise DataError(
                f"{url}: no column {', '.join(sorted(missing))}; a file that label-errors wrote has {', '.join(COLUMNS)}"
            )
        for record in reader:
            _decide(url, reader.line_num, _plain(url, reader.line_num, record), relabelled, removed, kept)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{url}: not a CSV file in UTF-8: {error}") from error
    return Patch(url, found.sha256, relabelled, frozenset(removed), frozenset(kept))


def _plain(url: str, line: int, record: dict[str, str]) -> dict[str, str]:
    """The cells as they stood in the data."""
    if None in record or None in record.values():
        raise DataError(f"{url}: line {line}: another number of fields than the header")
    return {name: _GUARDED.sub("", cell) for name, cell in record.items()}


def _guarded(cell: str) -> str:
    """With an apostrophe before what a spreadsheet would compute, and before one that stands in the data for itself."""
    return _BARE.sub("'", cell)


def _decide(url: str, line: int, record: dict[str, str], relabelled: dict[Key, str], removed: set[Key], kept: set[Key]) -> None:
    key, decision, new_label = (record["text"], record["label"]), record["decision"].strip(), record["new_label"]
    if decision not in DECISIONS:
        raise DataError(f"{url}: line {line}: decision {shown(decision)}; expected keep, relabel, remove or nothing")
    if key in relabelled or key in removed or key in kept:
        raise DataError(f"{url}: line {line}: a second decision on the same text and label; leave one of them")
    if decision == "relabel":
        if not new_label or new_label == record["label"]:
            raise DataError(f"{url}: line {line}: relabel needs a new_label, another one than {shown(record['label'])}")
        relabelled[key] = new_label
    elif decision == "remove":
        removed.add(key)
    elif decision == "keep":
        kept.add(key)


def is_decided(url: str) -> bool:
    """Whether there is a file in which anything but an empty decision stands: one that `write_review` did not just write."""
    if not storage.exists(url):
        return False
    try:
        patch = read_patch(url, None)
    except DataError:  # a decision with a slip of the pen, or somebody's other file
        return True
    return bool(patch.relabelled or patch.removed or patch.kept)


def write_review(url: str, lines: Iterable[tuple[Row, str, float]]) -> None:
    """Rows with a suggested label and the confidence in the label that they have, ready to be decided on in a spreadsheet."""
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    writer.writerows(
        map(_guarded, (row.text, row.label, suggestion, f"{confidence:.4f}", "", suggestion))
        for row, suggestion, confidence in lines
    )
    storage.write(url, stream.getvalue().encode("utf-8-sig"))  # by the mark Excel knows UTF-8
