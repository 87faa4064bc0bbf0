"""Rows with several labels: how they are read, checked and divided."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pigeonhole.dataset.check_data import run as check_data
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.label_sets import join_labels, split_labels
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.dataset.split import split_rows
from pigeonhole.errors import ConfigError, DataError


def read(path: Path, label_separator: str = "|") -> list[str]:
    return [row.label for row in read_rows(DataConfig(path=str(path), task="multi_label", label_separator=label_separator))]


def write(path: Path, content: str) -> Path:
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("labels", [(), ("a",), ("b", "a"), ("c d", "a")])
def test_joined_labels_come_apart_again_sorted(labels: tuple[str, ...]) -> None:
    assert split_labels(join_labels(labels)) == tuple(sorted(labels))


def test_csv_has_a_separator_between_labels_and_a_blank_field_for_none(tmp_path: Path) -> None:
    rows = "text,label\nt1,b|a\nt2,a\nt3,\nt4, b | c \n"
    assert read(write(tmp_path / "rows.csv", rows)) == ["a|b", "a", "", "b|c"]
    other = write(tmp_path / "other.csv", "text,label\nt1,b;a\nt2,a\n")
    assert read(other, label_separator=";") == ["a|b", "a"]


def test_json_lines_and_parquet_have_lists_or_the_same_strings(tmp_path: Path) -> None:
    rows = [["b", "a"], [], "a|c", [7]]
    lines = "".join(json.dumps({"text": f"t{number}", "label": label}) + "\n" for number, label in enumerate(rows))
    assert read(write(tmp_path / "rows.jsonl", lines)) == ["a|b", "", "a|c", "7"]
    pq.write_table(pa.table({"text": ["t1", "t2"], "label": [["b", "a"], []]}), tmp_path / "rows.parquet")
    assert read(tmp_path / "rows.parquet") == ["a|b", ""]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("a||b", r"line 2: the label is empty"),
        ("a|b|a", r"line 2: the label 'a' stands twice; write it once"),
        ("a" * 300, r"line 2: the label is too long: 300 characters"),
    ],
)
def test_a_field_that_means_nothing_certain_is_refused_by_its_line(tmp_path: Path, field: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "rows.csv", f"text,label\nt1,{field}\n"))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (["a|b"], r"line 1: the label 'a\|b' holds '\|'"),
        ([None], r"line 1: an item of 'label' is null; a string is needed"),
        (None, r"line 1: column 'label' is null"),
    ],
)
def test_a_list_that_means_nothing_certain_is_refused_by_its_line(tmp_path: Path, label: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "rows.jsonl", json.dumps({"text": "t", "label": label}) + "\n"))


def test_a_single_label_may_hold_the_separator_and_may_not_be_a_list(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", "text,label\nt1,a|b\n")
    assert [row.label for row in read_rows(DataConfig(path=str(rows)))] == ["a|b"]
    lists = write(tmp_path / "rows.jsonl", '{"text": "t", "label": ["a"]}\n')
    with pytest.raises(DataError, match="column 'label' is list; a string is needed"):
        list(read_rows(DataConfig(path=str(lists))))


def test_a_separator_has_to_be_one() -> None:
    with pytest.raises(ConfigError, match=r"data\.label_separator=' ': expected a sign such as"):
        DataConfig(label_separator=" ")


def rows_of(**counts: int) -> list[Row]:
    """`a_b=20`: 20 rows with the labels a and b; `none`: without any."""
    return [
        Row(f"text {number} of {name}", "" if name == "none" else name.replace("_", "|"), 2)
        for name, count in counts.items()
        for number in range(count)
    ]


def test_rare_labels_and_rows_without_any_reach_every_side_in_their_share() -> None:
    split = split_rows(rows_of(a=100, b=60, a_b=30, a_c=10, none=50), 0.1, 0.2, seed=0, task="multi_label")
    shares = [Counter(row.label for row in side) for side in (split.train, split.validation, split.test)]
    assert [found["a|c"] for found in shares] == [7, 1, 2]
    assert [found[""] for found in shares] == [35, 5, 10]
    assert [sum(found.values()) for found in shares] == [175, 25, 50]


def write_rows(path: Path, rows: list[Row]) -> Path:
    return write(path, "text,label\n" + "".join(f"{row.text},{row.label}\n" for row in rows))


def test_the_check_counts_each_label_and_the_splits_are_its_own(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", rows_of(a=40, b=40, a_b=20, none=20))
    config = DataConfig(path=str(data), task="multi_label", trigger_words="report")
    dataset = load_dataset(config)
    assert dataset.labels == ["a", "b"]
    assert dataset.report["labels"] == {"a": 60, "b": 60}
    split = dataset.split
    assert dataset.report["splits"] == {
        "train": len(split.train),
        "validation": len(split.validation),
        "test": len(split.test),
    }
    printed = check_data(
        [f"data.path={data}", "data.task=multi_label", "data.trigger_words=report", f"card={tmp_path / 'card.md'}"]
    )
    assert printed["rows"] == 120


def test_a_label_that_is_in_no_row_of_a_split_is_refused(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", rows_of(a=40, b=40, a_b=20, a_c=2))
    with pytest.raises(DataError, match=r"the label 'c' has 2 rows, in 2 of the 3 splits; each split needs it"):
        load_dataset(DataConfig(path=str(data), task="multi_label", trigger_words="report"))


def test_one_text_under_two_answers_is_told_and_nothing_is_refused_for_it(tmp_path: Path) -> None:
    rows = rows_of(a=40, b=40)
    rows += [Row(row.text, "a|b", 2) for row in rows[:30]]
    data = write_rows(tmp_path / "rows.csv", rows)
    report = load_dataset(DataConfig(path=str(data), task="multi_label", trigger_words="report")).report
    found = {finding["finding"]: finding["count"] for finding in report["suspicious"]}
    assert found["conflicting_labels"] == 60
    single = write_rows(tmp_path / "single.csv", [*rows_of(a=40, b=40), *(Row(row.text, "b", 2) for row in rows_of(a=30))])
    with pytest.raises(DataError, match=r"have several labels.*data\.task=multi_label"):
        load_dataset(DataConfig(path=str(single), trigger_words="report"))


def test_a_label_that_training_never_saw_is_refused_by_its_line(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows.csv", rows_of(a=40, b=40))
    test = write_rows(tmp_path / "test.csv", [Row("new 1", "a", 2), Row("new 2", "a|z", 3)])
    with pytest.raises(DataError, match=r"line 3: labels unseen in .*rows\.csv: 'z'"):
        load_dataset(DataConfig(path=str(data), test_path=str(test), task="multi_label", trigger_words="report"))


def test_no_label_anywhere_is_nothing_to_learn(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no label in any row; at least two labels are needed"):
        load_dataset(DataConfig(path=str(write_rows(tmp_path / "rows.csv", rows_of(none=40))), task="multi_label"))
