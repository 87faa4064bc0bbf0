from pathlib import Path

import pytest

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.errors import DataError


def _write(path: Path, rows: int, labels: tuple[str, ...] = ("bill", "parcel")) -> str:
    path.write_text(
        "text,label\n" + "".join(f"{path.stem} {label} {number},{label}\n" for number in range(rows) for label in labels)
    )
    return str(path)


def test_tickets_load_by_default() -> None:
    dataset = load_dataset(DataConfig())
    assert len(dataset.labels) == 8
    assert dataset.labels == sorted(dataset.labels)
    assert [len(side) for side in (dataset.split.train, dataset.split.validation, dataset.split.test)] == [2304, 288, 288]
    assert dataset.report["rows"] == 2880
    assert dataset.sha256 == dataset.report["sha256"]


def test_given_files_are_the_splits(tmp_path: Path) -> None:
    config = DataConfig(
        path=_write(tmp_path / "train.csv", 20),
        validation_path=_write(tmp_path / "validation.csv", 4),
        test_path=_write(tmp_path / "test.csv", 5),
    )
    dataset = load_dataset(config)
    assert [len(side) for side in (dataset.split.train, dataset.split.validation, dataset.split.test)] == [40, 8, 10]
    assert dataset.report["splits"] == {"train": 40, "validation": 8, "test": 10}
    assert {row.text.split()[0] for row in dataset.split.test} == {"test"}


def test_a_given_test_file_leaves_validation_to_be_split_off(tmp_path: Path) -> None:
    config = DataConfig(path=_write(tmp_path / "train.csv", 20), test_path=_write(tmp_path / "test.csv", 5))
    dataset = load_dataset(config)
    assert [len(side) for side in (dataset.split.train, dataset.split.validation, dataset.split.test)] == [36, 4, 10]


def test_what_is_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one label only, 'bill'"):
        load_dataset(DataConfig(path=_write(tmp_path / "train.csv", 20, labels=("bill",))))
