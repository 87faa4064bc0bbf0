"""A data set as training wants it: checked and split, its rows in memory."""

from dataclasses import dataclass
from typing import Any

from pigeonhole.dataset.check import check_rows, files_of, own_shares, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.dataset.split import Split, split_rows


@dataclass(frozen=True)
class Dataset:
    split: Split
    labels: list[str]  # sorted: their order is the order of the label ids
    sha256: str  # of the bytes of data.path
    report: dict[str, Any]  # as check-data prints it


def load_dataset(config: DataConfig) -> Dataset:
    """Raises DataError for data that check-data refuses, NotFoundError, StorageError."""
    digests = verify_files(config)
    rows = {name: list(read_rows(config, url)) for name, url in files_of(config).items()}
    checked = check_rows(config, digests, rows)
    own = split_rows(rows["train"], *own_shares(config), config.split_seed)
    split = Split(own.train, rows.get("validation", own.validation), rows.get("test", own.test))
    return Dataset(split, sorted(checked.labels), checked.sha256, checked.report())
