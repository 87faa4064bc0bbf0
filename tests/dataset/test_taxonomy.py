import hashlib
from pathlib import Path

import pytest
from tests.conftest import tiny_rows, write_rows

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import Dataset, load_dataset
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.taxonomy import Taxonomy, read_taxonomy
from pigeonhole.errors import ConfigError, DataError

ROWS = [Row(text, label, line) for line, (text, label) in enumerate(tiny_rows(), 2)]


def taxonomy_of(folder: Path, content: str) -> Taxonomy:
    (folder / "labels.yaml").write_text(content)
    return read_taxonomy(str(folder / "labels.yaml"))


def labels_after(folder: Path, content: str) -> dict[str, str]:
    return {row.text: row.label for row in taxonomy_of(folder, content).apply(ROWS, whole=True)}


def load(data: Path, taxonomy: Path) -> Dataset:
    return load_dataset(DataConfig(path=str(data), taxonomy=str(taxonomy), val=0.2, test=0.2, trigger_words="report"))


def test_labels_are_renamed_merged_and_retired_at_once(tmp_path: Path) -> None:
    assert set(labels_after(tmp_path, "rename: {delivery: shipping}").values()) == {"shipping", "billing", "account"}
    merged = labels_after(tmp_path, "merge: {money: [billing, account]}")
    assert set(merged.values()) == {"delivery", "money"}
    assert len(labels_after(tmp_path, "retire: [billing]")) == 100
    swapped = labels_after(tmp_path, "rename: {delivery: billing, billing: delivery}")
    assert all(swapped[row.text] == {"delivery": "billing", "billing": "delivery"}.get(row.label, row.label) for row in ROWS)


def test_a_label_is_split_text_by_text(tmp_path: Path) -> None:
    parts = [(row.text.upper(), "refund") for row in ROWS if row.label == "billing"][:20]
    write_rows(tmp_path / "billing.csv", parts)
    found = labels_after(tmp_path, "split: {billing: {rows: billing.csv, otherwise: invoice}}")
    assert sum(label == "refund" for label in found.values()) == 20
    assert sum(label == "invoice" for label in found.values()) == 30
    write_rows(tmp_path / "billing.csv", [*parts, ("another text", "invoice")])
    with pytest.raises(DataError, match=r"split: 30 rows \(lines .*, …\) stand in no file of rows; add them, or say otherwise"):
        labels_after(tmp_path, "split: {billing: {rows: billing.csv}}")


def test_a_data_set_is_read_with_the_new_labels_and_says_by_which_file(tiny_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "labels.yaml"
    path.write_text("rename: {delivery: shipping}\nretire: [account]\n")
    dataset = load(tiny_data, path)
    assert dataset.labels == ["billing", "shipping"]
    assert dataset.amendments == {"taxonomy_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert dataset.report["taxonomy"] == {
        "file": str(path),
        "sha256": dataset.amendments["taxonomy_sha256"],
        "added": [],
        "mapped": {"delivery": "shipping"},
        "split": [],
        "retired": ["account"],
    }
    with pytest.raises(DataError, match=r"data.taxonomy_sha256 promises"):
        read_taxonomy(str(path), "0" * 64)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("rename: {delivry: shipping}", "no row has the labels 'delivry'; those in the data: 'account'"),
        ("retire: [delivry]", "no row has the labels 'delivry'; those in the data: 'account'"),
        ("rename: {delivery: billing}", "there is a label 'billing' already; merge them instead"),
        ("rename: {delivery: x, billing: x}", "two labels get one name; merge them instead"),
        ("add: [refund]", "add: no row has the label 'refund'; add rows with it"),
        ("rename: {delivery: x}\nretire: [delivery]", "'delivery' stands in more than one place"),
        ("renam: {delivery: x}", "unknown field `renam`; expected add, rename, merge, split and retire"),
        ("merge: {all: [billing]}", "length >= 2"),
        ("retire: {a: b}", "Expected `array`"),
        ("retire: [1", "expected add, rename, merge, split and retire"),
        ("rename: {delivery: x}\nrename: {billing: y}", "labels.yaml: found duplicate key rename"),
        ("rename: {delivery: x, delivery: y}", "labels.yaml: found duplicate key delivery"),
        ("retire: &all [billing]\nadd: *all", "labels.yaml: holds a YAML alias"),
        ("rename: {delivery: 2026-13-01}", "labels.yaml: a value cannot be read: month must be in 1..12"),
        (f"retire: [{'1' * 5000}]", "labels.yaml: a value cannot be read: Exceeds the limit"),
        ("[" * 5000, "labels.yaml: is nested too deeply"),
    ],
)
def test_what_is_named_and_is_not_there_is_refused(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        labels_after(tmp_path, content)


def test_a_split_into_one_label_is_a_rename(tmp_path: Path) -> None:
    write_rows(tmp_path / "one.csv", [("a", "x"), ("b", "x")])
    with pytest.raises(DataError, match="becomes two at least, or rename it"):
        taxonomy_of(tmp_path, "split: {billing: {rows: one.csv}}")
    with pytest.raises(DataError, match="becomes two at least, or rename it"):
        taxonomy_of(tmp_path, "split: {billing: {rows: one.csv, otherwise: x}}")


def test_a_text_that_falls_into_two_labels_is_refused_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "two.csv").write_text("text,label\nmy invoice,invoice\na fee,fee\nMy invoice!,fee\n")
    with pytest.raises(DataError, match=r"two.csv: line 4: the text falls into 'fee', and into 'invoice' in a row before"):
        taxonomy_of(tmp_path, "split: {billing: {rows: two.csv}}")


def test_texts_with_several_labels_have_no_taxonomy() -> None:
    with pytest.raises(ConfigError, match=r"data\.taxonomy: speaks of one label a text"):
        DataConfig(task="multi_label", taxonomy="labels.yaml")


def test_a_label_knows_what_it_was(tmp_path: Path) -> None:
    write_rows(tmp_path / "billing.csv", [("a", "refund"), ("b", "invoice")])
    taxonomy = taxonomy_of(
        tmp_path,
        "rename: {delivery: shipping}\nmerge: {me: [account, login]}\nsplit: {billing: {rows: billing.csv}}\nadd: [drone]",
    )
    found = {label: taxonomy.ancestors(label) for label in ("shipping", "me", "refund", "drone", "other")}
    assert found == {
        "shipping": ["delivery"],
        "me": ["account", "login"],
        "refund": ["billing"],
        "drone": ["drone"],
        "other": ["other"],
    }


def test_an_added_label_may_come_with_rows_of_its_own(tmp_path: Path) -> None:
    taxonomy = taxonomy_of(tmp_path, "add: [refund]\nmerge: {money: [billing, account]}")
    rows = [*ROWS, Row("I want my money back", "refund", 200)]
    assert {row.label for row in taxonomy.apply(rows, whole=True)} == {"delivery", "money", "refund"}
    assert taxonomy.targets == {"refund", "money"}
