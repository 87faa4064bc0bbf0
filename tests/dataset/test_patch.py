import csv
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from tests.conftest import tiny_rows, write_rows

from pigeonhole.dataset.check_data import run as check_data
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.patch import COLUMNS, read_patch, write_review
from pigeonhole.dataset.read import Row
from pigeonhole.errors import DataError

TEXTS = [text for text, _ in tiny_rows()]


def write_patch(path: Path, *lines: tuple[str, str, str, str]) -> Path:
    """Lines of text, label, decision and new label."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows((text, label, "", "0.1", decision, new) for text, label, decision, new in lines)
    return path


def config_of(data: Path, patch: Path) -> DataConfig:
    return DataConfig(path=str(data), patch=str(patch), val=0.2, test=0.2, trigger_words="report")


def test_decisions_are_applied_as_the_rows_are_read_and_the_file_stays(tiny_data: Path, tmp_path: Path) -> None:
    before = tiny_data.read_bytes()
    patch = write_patch(
        tmp_path / "patch.csv",
        (TEXTS[0], "delivery", "relabel", "billing"),
        (TEXTS[1], "delivery", "remove", ""),
        (TEXTS[2], "delivery", "keep", "billing"),
        (TEXTS[3], "delivery", "", "billing"),
    )
    dataset = load_dataset(config_of(tiny_data, patch))
    labels = {row.text: row.label for part in (dataset.split.train, dataset.split.validation, dataset.split.test) for row in part}
    assert labels[TEXTS[0]] == "billing"
    assert TEXTS[1] not in labels
    assert labels[TEXTS[2]] == labels[TEXTS[3]] == "delivery"
    assert tiny_data.read_bytes() == before


def test_a_patch_is_about_data_path_alone(tiny_data: Path, tmp_path: Path) -> None:
    patch = write_patch(tmp_path / "patch.csv", (TEXTS[0], "delivery", "remove", ""))
    test = write_rows(tmp_path / "test.csv", [(TEXTS[0], "delivery"), ("a text of its own", "billing"), ("another", "account")])
    config = replace(config_of(tiny_data, patch), test_path=str(test))
    split = load_dataset(config).split
    assert [row.text for row in split.test] == [TEXTS[0], "a text of its own", "another"]
    assert TEXTS[0] not in {row.text for row in (*split.train, *split.validation)}


def test_the_patch_is_recorded_with_its_hash_and_another_one_is_refused(tiny_data: Path, tmp_path: Path) -> None:
    patch = write_patch(tmp_path / "patch.csv", (TEXTS[0], "delivery", "relabel", "billing"))
    dataset = load_dataset(config_of(tiny_data, patch))
    assert dataset.amendments == {"patch_sha256": read_patch(str(patch), None).sha256}
    assert dataset.report["patch"] == {
        "file": str(patch),
        "sha256": dataset.amendments["patch_sha256"],
        "relabelled": 1,
        "removed": 0,
        "kept": 0,
    }
    with pytest.raises(DataError, match=r"data.patch_sha256 promises sha256 0{64}"):
        read_patch(str(patch), "0" * 64)


def test_check_data_judges_the_patched_rows(tiny_data: Path, tmp_path: Path) -> None:
    patch = write_patch(tmp_path / "patch.csv", (TEXTS[0], "delivery", "remove", ""))
    report = check_data([f"data={tiny_data}", f"data.patch={patch}", "data.trigger_words=report"])
    assert report["labels"]["delivery"] == 49
    assert report["patch"]["removed"] == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ((TEXTS[0], "billing", "keep", ""), "1 of its decisions fit no row .*'billing'.*the data has changed"),
        (("unheard of", "delivery", "remove", ""), "1 of its decisions fit no row"),
        ((TEXTS[0], "delivery", "relabel", "biling"), "new_label 'biling' is no label of the data"),
        ((TEXTS[0], "delivery", "relabel", "delivery"), "line 2: relabel needs a new_label, another one than 'delivery'"),
        ((TEXTS[0], "delivery", "relabel", ""), "line 2: relabel needs a new_label"),
        ((TEXTS[0], "delivery", "yes", ""), "line 2: decision 'yes'; expected keep, relabel, remove or nothing"),
    ],
)
def test_a_decision_that_cannot_be_followed_is_refused(
    tiny_data: Path, tmp_path: Path, line: tuple[str, str, str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_dataset(config_of(tiny_data, write_patch(tmp_path / "patch.csv", line)))


def test_two_decisions_on_one_row_and_other_files_are_refused(tmp_path: Path) -> None:
    twice = write_patch(tmp_path / "twice.csv", ("a text", "x", "keep", ""), ("a text", "x", "remove", ""))
    with pytest.raises(DataError, match="line 3: a second decision"):
        read_patch(str(twice), None)
    with pytest.raises(DataError, match="no column decision, new_label"):
        read_patch(str(write_rows(tmp_path / "rows.csv", [("a", "b")])), None)
    (tmp_path / "short.csv").write_text(",".join(COLUMNS) + "\nonly,two\n")
    with pytest.raises(DataError, match="line 2: another number of fields"):
        read_patch(str(tmp_path / "short.csv"), None)


def test_no_spreadsheet_takes_a_text_of_a_review_file_for_a_formula_and_its_decision_still_fits(tmp_path: Path) -> None:
    texts = ["=cmd|calc!A0", "-1 is what I see", " +49", "\uff1dcmd", "'=quoted", "plain", "'tis plain"]
    url = str(tmp_path / "review.csv")
    write_review(url, [(Row(text, "@label", 2), "=other", 0.5) for text in texts])
    with open(url, encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.DictReader(stream))
    guarded = ["'=cmd|calc!A0", "'-1 is what I see", "' +49", "'\uff1dcmd", "''=quoted", "plain", "'tis plain"]
    assert [line["text"] for line in lines] == guarded
    assert {(line["label"], line["suggestion"], line["new_label"]) for line in lines} == {("'@label", "'=other", "'=other")}
    write_patch(Path(url), *((line["text"], line["label"], "relabel", line["new_label"]) for line in lines))
    assert read_patch(url, None).relabelled == dict.fromkeys([(text, "@label") for text in texts], "=other")


def test_nor_a_spreadsheet_that_divides_at_semicolons_and_knows_quotes_at_the_begin_of_a_cell_alone(tmp_path: Path) -> None:
    draw = random.Random(0)
    texts = [
        "foo;=1+1",
        "foo; =1+1;",
        'a,"b";"=1+1"',
        "list:\n- one\r\n- two",
        "foo\t@x",
        "a;'=1",
        "a;''-1",
        "fine; and\n\n\r\nwell",
    ]
    texts += ["x" + "".join(draw.choices("a;=- '\",\t\n\r", k=8)) for _ in range(500)]
    url = str(tmp_path / "review.csv")
    write_review(url, [(Row(text, "a;=1", 2), "b;@", 0.5) for text in dict.fromkeys(texts)])
    content = Path(url).read_bytes().decode("utf-8-sig")
    cells = [cell.lstrip(' "') for cell in re.split("[;\t\r\n]", content)]
    assert [cell for cell in cells if cell.startswith(("=", "-", "@"))] == []
    with open(url, encoding="utf-8-sig", newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert next(iter(lines))["text"] == "foo;'=1+1"
    assert next(line["text"] for line in lines if line["text"].startswith("fine")) == "fine; and\n\n\r\nwell"
    write_patch(Path(url), *((line["text"], line["label"], "remove", "") for line in lines))
    assert read_patch(url, None).removed == {(text, "a;=1") for text in texts}


def test_a_review_file_is_a_patch_without_decisions(tmp_path: Path) -> None:
    url = str(tmp_path / "review.csv")
    write_review(url, [(Row('says "no", twice\n', "a", 2), "b", 0.0123)])
    patch = read_patch(url, None)
    assert (patch.relabelled, patch.removed, patch.kept) == ({}, frozenset(), frozenset())
    with open(url, encoding="utf-8-sig", newline="") as stream:
        (line,) = csv.DictReader(stream)
    assert line == {
        "text": 'says "no", twice\n',
        "label": "a",
        "suggestion": "b",
        "confidence": "0.0123",
        "decision": "",
        "new_label": "b",
    }


def test_a_review_file_goes_through_a_spreadsheet_that_writes_semicolons_and_guesses_encodings(tmp_path: Path) -> None:
    url = str(tmp_path / "review.csv")
    write_review(url, [(Row("Bitte zurück; danke, Grüße", "Rückgabe", 2), "Lob", 0.1)])
    assert Path(url).read_bytes().startswith(b"\xef\xbb\xbf")  # without it Excel takes each umlaut for two signs
    with open(url, encoding="utf-8-sig", newline="") as stream:
        lines = [[*line[:4], "remove", line[5]] if number else line for number, line in enumerate(csv.reader(stream))]
    with open(url, "w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream, delimiter=";").writerows(lines)
    assert read_patch(url, None).removed == {("Bitte zurück; danke, Grüße", "Rückgabe")}
