import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.keyword_bundle import keyword_bundle, keyword_rows

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.errors import ConfigError, DataError
from pigeonhole.evaluation.labelled import RowsConfig, label_ids, read_labelled, read_own_split, was_trained_on
from pigeonhole.options import to_flat


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "\n".join(f"{text},{label}" for text, label in keyword_rows()) + "\n")
    return path


def origin(path: Path, **changes: Any) -> dict[str, Any]:
    """What training writes into a manifest of where its rows came from."""
    config = replace(DataConfig(path=str(path), val=0.2, test=0.2, trigger_words="report"), **changes)
    settings = {f"data.{key}": value for key, value in to_flat(config).items()}
    return {"config": {**settings, "trainer.epochs": 3}, "data_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_rows_keep_their_order_and_name_their_file(rows_file: Path) -> None:
    found = read_labelled(str(rows_file))
    assert list(zip(found.texts, found.labels, strict=True)) == keyword_rows()
    assert found.source == str(rows_file)
    assert found.sha256 == hashlib.sha256(rows_file.read_bytes()).hexdigest()


def test_columns_have_the_names_they_are_given(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("queue,message\nbilling,my invoice\n")
    found = read_labelled(str(path), RowsConfig(text="message", label="queue"))
    assert (found.texts, found.labels) == (["my invoice"], ["billing"])


def test_a_file_without_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n")
    with pytest.raises(DataError, match="no rows"):
        read_labelled(str(path))


def test_label_ids_are_places_among_the_known_labels(rows_file: Path) -> None:
    found = read_labelled(str(rows_file))
    known = ("delivery", "other", "billing", "account")
    assert [known[place] for place in label_ids(found, known)] == found.labels


def test_labels_that_the_bundle_does_not_know_are_refused_and_listed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\nan invoice,billing\n" + "".join(f"text {i},queue {i}\n" for i in range(7)) + "again,queue 6\n")
    rows = read_labelled(str(path))
    with pytest.raises(DataError) as refused:
        label_ids(rows, ("billing", "delivery"))
    said = str(refused.value)
    assert (
        "line 3: 7 of its labels are unseen by the bundle: 'queue 6', 'queue 0', 'queue 1', 'queue 2', 'queue 3' and 2 more"
        in said
    )
    assert "the bundle knows 2: 'billing', 'delivery'" in said
    assert "\n" not in said


def test_the_split_of_the_training_run_is_made_again_row_by_row(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file, split_seed=7))
    train, test = read_own_split(bundle)
    expected = load_dataset(DataConfig(path=str(rows_file), val=0.2, test=0.2, trigger_words="report", split_seed=7)).split
    assert (train.rows, test.rows) == (expected.train, expected.test)
    assert "test split" in test.source
    assert str(rows_file) in test.source


def test_rows_that_changed_since_training_are_not_taken_for_its_test_split(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file))
    rows_file.write_text(rows_file.read_text() + "one more invoice,billing\n")
    with pytest.raises(ConfigError, match=r"checksum differs.*write data\.path=FILE"):
        read_own_split(bundle)


def test_a_bundle_that_does_not_say_what_it_was_trained_on_needs_a_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"does not say.*write data\.path=FILE"):
        read_own_split(keyword_bundle(tmp_path / "bundle", "v1"))


def test_a_bundle_that_kept_no_test_rows_needs_a_file(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file, test=0.0))
    with pytest.raises(ConfigError, match="without a test split"):
        read_own_split(bundle)


def test_the_file_of_the_training_run_is_recognised_by_its_bytes(rows_file: Path, tmp_path: Path) -> None:
    bundle = keyword_bundle(tmp_path / "bundle", "v1", provenance=origin(rows_file))
    copy, other = tmp_path / "copy.csv", tmp_path / "other.csv"
    copy.write_bytes(rows_file.read_bytes())
    other.write_text("text,label\nan invoice,billing\n")
    assert was_trained_on(bundle, read_labelled(str(copy)))
    assert not was_trained_on(bundle, read_labelled(str(other)))
