"""A change of the labels themselves: `labels.yaml` with add, rename, merge, split and retire, applied to rows as they are read.

All of it speaks of the labels as they were and happens at once. Promises: a label that it does not name stays; a row's new label
follows from its text and its old label; what is named and is not there is refused, so a slip of the pen changes nothing silently.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import Meta

from pigeonhole import storage
from pigeonhole.configuration import parse_yaml
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import digest_file, normalise, verify_file
from pigeonhole.dataset.read import Row, listed, read_rows, shown
from pigeonhole.errors import DataError

Label = Annotated[str, Meta(min_length=1, max_length=256)]


class Parting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one label becomes several: `rows`, a file of texts with their new labels, and what the texts get that it lacks."""

    rows: str
    otherwise: Label | None = None


class Labels(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. Every old label stands in one place at most."""

    add: list[Label] = []
    rename: dict[Label, Label] = {}
    merge: dict[Label, Annotated[list[Label], Meta(min_length=2)]] = {}
    split: dict[Label, Parting] = {}
    retire: list[Label] = []


@dataclass(frozen=True)
class Taxonomy:
    url: str
    sha256: str
    added: frozenset[str]
    mapped: dict[str, str]  # old label -> new one, by rename and merge
    renamed: dict[str, str]  # the part of it whose meaning stays
    retired: frozenset[str]
    split: dict[str, dict[str, str]]  # old label -> normalised text -> new label
    otherwise: dict[str, str | None] = field(default_factory=dict)

    @property
    def named(self) -> set[str]:
        """The old labels that are not there any more."""
        return {*self.mapped, *self.retired, *self.split}

    @property
    def targets(self) -> set[str]:
        """The labels that are new."""
        parts = {label for texts in self.split.values() for label in texts.values()}
        return {*self.added, *self.mapped.values(), *parts, *(label for label in self.otherwise.values() if label)}

    def ancestors(self, label: str) -> list[str]:
        """The old labels whose rows have this one now; itself, where nothing is said of it."""
        into = [old for old, new in self.mapped.items() if new == label]
        parted = [old for old, texts in self.split.items() if label in texts.values() or label == self.otherwise.get(old)]
        return [*into, *parted] or [label]

    def label_of(self, text: str, label: str) -> str | None:
        """The new label; None: it is retired, or split and nobody has said into what this text falls."""
        if label in self.retired:
            return None
        if label in self.split:
            return self.split[label].get(normalise(text), self.otherwise.get(label))
        return self.mapped.get(label, label)

    def apply(self, rows: Iterable[Row], *, whole: bool) -> Iterator[Row]:
        """`whole`: these are all rows there are, so every label that is named has to be met. Raises DataError."""
        seen: set[str] = set()
        given: set[str] = set()
        undecided: list[int] = []
        for row in rows:
            seen.add(row.label)
            label = self.label_of(row.text, row.label)
            if label is not None:
                given.add(label)
                yield Row(row.text, label, row.line)
            elif row.label in self.split:
                undecided.append(row.line)
        if undecided:
            lines = ", ".join(map(str, undecided[:5])) + (", …" if len(undecided) > 5 else "")
            problem = f"{len(undecided)} rows (lines {lines}) stand in no file of rows"
            raise DataError(f"{self.url}: split: {problem}; add them, or say otherwise: LABEL")
        if not whole:
            return
        missing = sorted(self.named - seen)
        if missing:
            raise DataError(f"{self.url}: no row has the labels {listed(missing)}; those in the data: {listed(sorted(seen))}")
        taken = sorted(set(self.renamed.values()) & (seen - self.named))
        if taken:
            raise DataError(f"{self.url}: rename: there is a label {shown(taken[0])} already; merge them instead")
        empty = sorted(self.added - given)
        if empty:
            raise DataError(f"{self.url}: add: no row has the label {shown(empty[0])}; add rows with it to the data")

    def report(self) -> dict[str, object]:
        return {
            "file": self.url,
            "sha256": self.sha256,
            "added": sorted(self.added),
            "mapped": self.mapped,
            "split": sorted(self.split),
            "retired": sorted(self.retired),
        }


def read_taxonomy(url: str, sha256: str | None = None) -> Taxonomy:
    """Raises DataError for a file that is no such change, NotFoundError, StorageError."""
    found = digest_file(url)
    verify_file(url, found, sha256, "data.taxonomy_sha256")
    try:
        labels = msgspec.convert(parse_yaml(storage.read(url).decode()) or {}, Labels)
    except ValueError as error:  # of parse_yaml, of UTF-8 and of msgspec
        raise DataError(f"{url}: {error}; expected add, rename, merge, split and retire") from error
    merged = {old: new for new, several in labels.merge.items() for old in several}
    old = [*labels.rename, *(one for several in labels.merge.values() for one in several), *labels.split, *labels.retire]
    twice = sorted({label for label in old if old.count(label) > 1})
    if twice:
        raise DataError(f"{url}: the label {shown(twice[0])} stands in more than one place; one thing happens to each")
    if len(set(labels.rename.values())) < len(labels.rename):
        raise DataError(f"{url}: rename: two labels get one name; merge them instead")
    base = url.rpartition("/")[0]
    split = {
        label: _parts(storage.join(base, part.rows) if base else part.rows, part.otherwise, url, label)
        for label, part in labels.split.items()
    }
    otherwise = {label: part.otherwise for label, part in labels.split.items()}
    return Taxonomy(
        url,
        found.sha256,
        frozenset(labels.add),
        {**labels.rename, **merged},
        labels.rename,
        frozenset(labels.retire),
        split,
        otherwise,
    )


def _parts(rows: str, otherwise: str | None, url: str, label: str) -> dict[str, str]:
    parts: dict[str, str] = {}
    for row in read_rows(DataConfig(path=rows, text="text", label="label")):
        said = parts.setdefault(normalise(row.text), row.label)
        if said != row.label:
            problem = f"the text falls into {shown(row.label)}, and into {shown(said)} in a row before"
            raise DataError(f"{url}: split: {rows}: line {row.line}: {problem}; leave one of them")
    if len({*parts.values(), *([otherwise] if otherwise else [])}) < 2:
        raise DataError(f"{url}: split: {rows} has one label; {shown(label)} becomes two at least, or rename it")
    return parts
