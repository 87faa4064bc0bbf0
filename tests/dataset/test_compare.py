import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import tiny_rows, write_rows

from pigeonhole.dataset import compare
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.read import Row
from pigeonhole.errors import ConfigError, DataError, GateError

Rows = list[tuple[str, str]]


def compared(folder: Path, before: Rows, after: Rows, *arguments: str) -> dict[str, Any]:
    files = [write_rows(folder / f"{name}.csv", rows) for name, rows in (("before", before), ("after", after))]
    split = ["data.val=0.2", "data.test=0.2", "data.trigger_words=report"]
    return compare.run([f"before={files[0]}", f"after={files[1]}", f"report={folder / 'report.md'}", *split, *arguments])


def test_no_change_is_no_change(tmp_path: Path) -> None:
    found = compared(tmp_path, tiny_rows(), tiny_rows())
    assert {name: found[name] for name in ("added", "removed", "relabelled", "leaked", "shift")} == {
        "added": 0,
        "removed": 0,
        "relabelled": 0,
        "leaked": 0,
        "shift": 0,
    }
    assert "Within all limits." in (tmp_path / "report.md").read_text()


def test_rows_that_came_went_and_changed_their_label_are_counted_with_their_lines(tmp_path: Path) -> None:
    before = tiny_rows()
    after = [("A brand new question on my bill!", "billing"), *before[1:-1], (before[-1][0], "billing")]
    found = compared(tmp_path, before, after)
    assert (found["added"], found["removed"], found["relabelled"]) == (1, 1, 1)
    assert found["labels"]["billing"] == {"before": 50, "after": 52}
    assert found["shift"] == pytest.approx(2 / 150, abs=1e-4)  # two rows of 150 changed sides
    report = (tmp_path / "report.md").read_text()
    assert "| added | 1 | 2 |" in report
    assert "| removed (lines of the old file) | 1 | 2 |" in report
    assert "| account | billing | 1 |" in report
    assert "brand new" not in report
    assert compared(tmp_path, after, before)["relabelled"] == 1  # there and back


def test_another_spelling_of_a_text_is_no_new_row(tmp_path: Path) -> None:
    after = [(tiny_rows()[0][0].upper() + "!", tiny_rows()[0][1]), *tiny_rows()[1:]]
    assert compared(tmp_path, tiny_rows(), after)["added"] == 0


def test_a_text_that_was_tested_on_and_is_trained_on_now_has_leaked(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.csv", tiny_rows())
    config = DataConfig(path=str(file), val=0.2, test=0.2, trigger_words="report")
    before, after = load_dataset(config), load_dataset(replace(config, val=0.0, test=0.0))
    change = compare.compare(before, after)
    assert {row.line for row in change.leaked} == {row.line for row in before.split.test}
    assert any("leaked" in line for line in compare.refuse(change, compare.CompareConfig()))


@pytest.mark.parametrize(
    ("kept", "told"),
    [
        (lambda rows: rows[:-50], "label 'account' has no rows any more"),
        (lambda rows: rows[::2] + rows[1::4], "max_removed=0.1"),
        (lambda rows: [(text, "billing" if label == "account" else label) for text, label in rows], "max_relabelled=0.05"),
        (
            lambda rows: [*rows, *((f"{text} and what about the charge {i}", "billing") for i, (text, _) in enumerate(rows))],
            "max_shift",
        ),
    ],
    ids=["label gone", "removed", "relabelled", "mix"],
)
def test_a_change_over_a_limit_is_refused_and_its_report_is_written_all_the_same(kept: Any, told: str, tmp_path: Path) -> None:
    with pytest.raises(GateError, match=told) as refused:
        compared(tmp_path, tiny_rows(), kept(tiny_rows()))
    assert json.dumps(refused.value.result)
    assert "Refused: " in (tmp_path / "report.md").read_text()


def change(**parts: Any) -> compare.Change:
    rows = [Row(f"text {number}", "a", number) for number in range(10)]
    none: dict[str, Any] = {
        "added": [],
        "removed": [],
        "relabelled": [],
        "leaked": [],
        "labels": {"a": (40, 40)},
        "rows": (40, 40),
    }
    given: dict[str, Any] = {name: rows[:count] for name, count in parts.items() if name in ("removed", "leaked")}
    if "relabelled" in parts:
        given["relabelled"] = [(row, "b") for row in rows[: parts["relabelled"]]]
    return compare.Change(**{**none, "texts_in_both": 20, "tested_before": 10, **given})


@pytest.mark.parametrize(
    ("found", "refused"),
    [
        ({"removed": 4}, []),
        ({"removed": 5}, ["removed: 5 of 40 (12.5%), max_removed=0.1 allows 10.0%"]),
        ({"relabelled": 1}, []),
        ({"relabelled": 2}, ["relabelled: 2 of 20 (10.0%), max_relabelled=0.05 allows 5.0%"]),
        ({"leaked": 1}, ["leaked: 1 of 10 (10.0%), max_leaked=0.05 allows 5.0%"]),
    ],
)
def test_a_limit_is_allowed_itself_and_is_a_share_of_what_could_have_changed(found: dict[str, int], refused: list[str]) -> None:
    assert compare.refuse(change(**found), compare.CompareConfig()) == refused


def test_of_a_text_that_stands_there_twice_the_first_row_counts(tmp_path: Path) -> None:
    new = [("A brand new question on my bill!", "billing"), ("a brand new question on my bill", "account")]
    assert compared(tmp_path, tiny_rows(), [*tiny_rows(), *new])["labels"]["billing"] == {"before": 50, "after": 51}
    assert "| added | 1 | 152 |" in (tmp_path / "report.md").read_text()


def test_rows_that_check_data_refuses_are_refused_here_too(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        compared(tmp_path, tiny_rows(), [*tiny_rows(), ("", "billing")])


def test_both_sides_are_needed() -> None:
    with pytest.raises(ConfigError, match="before=None, after=x: both are needed"):
        compare.run(["after=x"])


def test_a_label_cannot_break_the_table() -> None:
    assert compare._cell("a|b\nc") == "a\\|b c"
