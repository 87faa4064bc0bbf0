from pathlib import Path

import pytest
from tests.conftest import write_rows

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.errors import ConfigError, DataError


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


def test_tickets_bring_texts_that_belong_to_no_label_in_two_halves() -> None:
    found = load_dataset(DataConfig()).out_of_scope
    assert (len(found.fitted), len(found.test)) == (103, 102)
    assert not set(found.fitted) & set(found.test)


def test_other_data_have_such_texts_where_they_are_given(tmp_path: Path) -> None:
    path, strange = _write(tmp_path / "train.csv", 20), _write(tmp_path / "strange.csv", 5)
    assert load_dataset(DataConfig(path=path)).out_of_scope.fitted == []
    other = _write(tmp_path / "other.csv", 3)
    found = load_dataset(DataConfig(path=path, out_of_scope_path=strange, out_of_scope_test_path=other)).out_of_scope
    assert (len(found.fitted), len(found.test)) == (10, 6)


def test_a_text_that_has_a_label_and_is_said_to_have_none_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "train.csv", 20)
    with pytest.raises(DataError, match=r"data\.out_of_scope_path: 40 of its texts stand in data\.path too, with a label"):
        load_dataset(DataConfig(path=path, out_of_scope_path=path))


@pytest.mark.parametrize(("texts", "message"), [(["gone"], "1 rows; a rule"), (["gone", "Gone "], "2 rows of one text; a rule")])
def test_too_few_of_such_texts_to_fit_on_some_and_measure_on_others_are_refused(
    tmp_path: Path, texts: list[str], message: str
) -> None:
    strange = write_rows(tmp_path / "strange.csv", [(text, "none") for text in texts])
    with pytest.raises(DataError, match=f"strange.csv: {message}"):
        load_dataset(DataConfig(path=_write(tmp_path / "train.csv", 20), out_of_scope_path=str(strange)))


def test_texts_to_measure_on_need_others_to_fit_on() -> None:
    with pytest.raises(ConfigError, match=r"data\.out_of_scope_test_path needs data\.out_of_scope_path"):
        DataConfig(out_of_scope_test_path="strange.csv")


def test_a_checksum_needs_the_file_whose_it_is() -> None:
    with pytest.raises(ConfigError, match=r"data\.patch_sha256 needs data\.patch"):
        DataConfig(patch_sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"data\.taxonomy_sha256 needs data\.taxonomy"):
        DataConfig(taxonomy_sha256="0" * 64)
