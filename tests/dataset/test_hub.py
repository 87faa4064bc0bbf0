"""No network: the datasets library reads a folder as it reads the hub, through the same loader."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.errors import DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def _folder(tmp_path: Path, split: str, columns: dict[str, object]) -> Path:
    folder = tmp_path / "set"
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), folder / f"{split}.parquet")
    return folder


def test_rows_come_from_the_train_split_by_default(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "train", {"text": ["NA", "null"], "label": ["a", "b"]})
    assert list(read_rows(DataConfig(path=f"hub://{folder}"))) == [Row("NA", "a", 1), Row("null", "b", 2)]


def test_another_split_is_named_after_a_colon(tmp_path: Path) -> None:
    _folder(tmp_path, "train", {"text": ["one"], "label": ["a"]})
    folder = _folder(tmp_path, "test", {"text": ["two"], "label": ["b"]})
    assert list(read_rows(DataConfig(path=f"hub://{folder}:test"))) == [Row("two", "b", 1)]


def test_class_numbers_become_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["ham", "spam"])})
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [1, 0]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    assert [row.label for row in read_rows(DataConfig(path=f"hub://{tmp_path / 'set'}"))] == ["spam", "ham"]


def test_lists_of_class_numbers_become_lists_of_names(tmp_path: Path) -> None:
    import datasets

    emotions = datasets.Sequence(datasets.ClassLabel(names=["anger", "joy"]))  # as go_emotions has them
    features = datasets.Features({"text": datasets.Value("string"), "label": emotions})
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "label": [[1, 0], []]}, features=features)
    (tmp_path / "set").mkdir()
    rows.to_parquet(tmp_path / "set" / "train.parquet")
    config = DataConfig(path=f"hub://{tmp_path / 'set'}", task="multi_label")
    assert [row.label for row in read_rows(config)] == ["anger|joy", ""]


def test_whole_numbers_are_their_digits_as_in_other_files(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "train", {"text": ["one", "two"], "label": [3, 12]})
    assert [row.label for row in read_rows(DataConfig(path=f"hub://{folder}"))] == ["3", "12"]


def test_null_is_refused_with_its_row(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "train", {"text": ["one", None], "label": ["a", "b"]})
    with pytest.raises(DataError, match="line 2: column 'text' is null"):
        list(read_rows(DataConfig(path=f"hub://{folder}")))


@pytest.mark.parametrize(
    ("address", "said"),
    [("hub://a:b:c", "expected hub://ORG/NAME"), ("hub://nobody/nothing-of-this-name", "the hub gave no rows")],
)
def test_bad_address_is_refused(address: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        list(read_rows(DataConfig(path=address)))


def test_missing_split_is_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path, "train", {"text": ["one"], "label": ["a"]})
    with pytest.raises(DataError, match="the hub gave no rows"):
        list(read_rows(DataConfig(path=f"hub://{folder}:other")))
