"""A data set as training wants it: checked and split, its rows in memory."""

from dataclasses import dataclass, field, replace
from typing import Any

from pigeonhole.dataset.amend import open_amendments
from pigeonhole.dataset.check import check_rows, files_of, own_shares, verify_files
from pigeonhole.dataset.config import TICKETS, TICKETS_OUT_OF_SCOPE, DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.dataset.split import Split, split_rows
from pigeonhole.errors import DataError


@dataclass(frozen=True)
class OutOfScope:
    """Texts that belong to no label: those that a rule is fitted on, and those that nothing but the measurement sees."""

    fitted: list[str]
    test: list[str]


@dataclass(frozen=True)
class Dataset:
    split: Split
    labels: list[str]  # sorted: their order is the order of the label ids
    sha256: str  # of the bytes of data.path
    report: dict[str, Any]  # as check-data prints it
    out_of_scope: OutOfScope
    amendments: dict[str, str] = field(default_factory=dict)  # sha256 of what was applied while reading, by its name


def load_dataset(config: DataConfig) -> Dataset:
    """Raises DataError for data that check-data refuses, NotFoundError, StorageError."""
    digests = verify_files(config)
    amendments = open_amendments(config)
    rows = {name: list(amendments.rows(config, url)) for name, url in files_of(config).items()}
    checked = check_rows(config, digests, rows)
    own = split_rows(rows["train"], *own_shares(config), config.split_seed, config.task)
    split = Split(own.train, rows.get("validation", own.validation), rows.get("test", own.test))
    outside = read_out_of_scope(config)
    _refuse_in_scope(outside, split)
    report = {**checked.report(), **amendments.report()}
    return Dataset(split, sorted(checked.labels), checked.sha256, report, outside, amendments.digests())


def read_out_of_scope(config: DataConfig) -> OutOfScope:
    """No texts where none are given. A file is halved by the seeded hash of its texts."""
    own = TICKETS_OUT_OF_SCOPE if config.path == TICKETS else None
    url = config.out_of_scope_path or own
    if url is None:
        return OutOfScope([], [])
    rows = _read(config, url)
    if config.out_of_scope_test_path:
        return OutOfScope([row.text for row in rows], [row.text for row in _read(config, config.out_of_scope_test_path)])
    halves = split_rows([replace(row, label="") for row in rows], 0, 0.5, config.split_seed)
    if not halves.test:
        raise DataError(
            f"{url}: {len(rows)} rows of one text; a rule of what is out of scope is fitted on some and measured on others"
        )
    return OutOfScope([row.text for row in halves.train], [row.text for row in halves.test])


def _read(config: DataConfig, url: str) -> list[Row]:
    columns = config if config.out_of_scope_path else replace(config, text=None, label=None)
    rows = list(read_rows(columns, url))
    if len(rows) < 2:
        raise DataError(f"{url}: {len(rows)} rows; a rule of what is out of scope needs texts to fit and others to measure")
    return rows


def _refuse_in_scope(outside: OutOfScope, split: Split) -> None:
    inside = {normalise(row.text) for row in (*split.train, *split.validation, *split.test)}
    both = sum(normalise(text) in inside for text in (*outside.fitted, *outside.test))
    if both:
        raise DataError(f"data.out_of_scope_path: {both} of its texts stand in data.path too, with a label; take them out of one")
