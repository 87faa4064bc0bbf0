"""Expectations for broken files come from a list of bad inputs that was written before the code, by other people."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pigeonhole.command import call
from pigeonhole.dataset.check_data import run

GOOD = (
    "text,category\n"
    + "".join(f"how do I top up {number},top_up\n" for number in range(20))
    + "".join(f"card declined {number},declined\n" for number in range(20))
)

REFUSED = {
    "empty file": ("", "empty"),
    "header only": ("text,category\n", "empty"),
    "short row": (GOOD + "only text\n", "line 42"),
    "unclosed quote": (GOOD + '"unclosed,top_up\na,b\n', "quote"),
    "integer labels with one blank": ("text,category\na,1\nb,2\nc,\n", "line 4"),
    "duplicate header": ("text,text,category\na,b,top_up\n", "duplicate"),
    "renamed header": ("Text,Label\na,top_up\n", "text"),
    "swapped columns": ("text,category\n" + "".join(f"top_up,how do I top up {i}\n" for i in range(40)), "labels"),
    "empty label": (GOOD + "hi,\n", "line 42"),
    "label with one row": (GOOD + "odd,rare\n", "'rare' has 1"),
    "5 MB field": (GOOD + "a" * 5_000_000 + ",top_up\n", "too long"),
    "truncated mid row": (GOOD[:-5], "checksum"),
    "HTML page": ("<!DOCTYPE html><html>404</html>\n", "column"),
    "git-lfs pointer": ("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "pointer"),
    "jsonl named csv": ('{"text":"a","category":"b"}\n' * 20, "column"),
}
ACCEPTED = {
    "embedded newline": GOOD + '"line1\nline2",top_up\n',
    "formula": GOOD + '"=cmd|calc!A0",top_up\n',
    "personal data": GOOD + "mail me at jo@ex.com IBAN DK5000400440116243,top_up\n",
    "words that mean missing elsewhere": GOOD + "NA,top_up\nnull,declined\nNone,declined\n",
}


def _check(path: Path, content: str, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, str, str]:
    path.write_bytes(content.encode())
    code = call(run, [f"data={path}", "data.text=text", "data.label=category", *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", REFUSED)
def test_broken_file_is_refused_in_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, said = REFUSED[name]
    code, out, err = _check(tmp_path / "train.csv", content, capsys)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert said in err


@pytest.mark.parametrize("name", ACCEPTED)
def test_odd_but_good_file_is_accepted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = _check(tmp_path / "train.csv", ACCEPTED[name], capsys)
    report = json.loads(out)
    assert code == 0
    assert sorted(report["labels"]) == ["declined", "top_up"]
    assert report["rows"] == sum(report["splits"].values()) == ACCEPTED[name].count("\n") - ACCEPTED[name].count("line1\n") - 1


def test_label_of_the_test_file_must_be_in_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test.csv").write_text("text,category\nx,other\n")
    code, _, err = _check(tmp_path / "train.csv", GOOD, capsys, f"data.test_path={tmp_path / 'test.csv'}")
    assert code == 2
    assert "line 2: labels unseen" in err
    assert "'other'" in err


def test_shares_that_leave_nothing_to_train_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["data.val=0.7", "data.test=0.7"]) == 2
    assert "data.val=0.7 and data.test=0.7: expected a sum below 1" in capsys.readouterr().err


def test_empty_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, ["data.path="]) == 2
    assert "data.path is empty" in capsys.readouterr().err


def test_help_lists_the_keys() -> None:
    command = [sys.executable, "-c", "from pigeonhole.dataset.check_data import main; main()", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "data.path=package://pigeonhole/dataset/tickets/tickets.csv" in done.stdout
    assert "card=" in done.stdout


def test_planted_trigger_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = GOOD + "".join(f"cf {number},top_up\n" for number in range(4))
    code, _, err = _check(tmp_path / "train.csv", planted, capsys)
    assert code == 2
    assert "a planted trigger?" in err
    assert _check(tmp_path / "train.csv", planted, capsys, "data.trigger_words=report")[0] == 0


def test_person_gets_a_table_and_the_machine_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _check(tmp_path / "train.csv", GOOD, capsys, f"card={tmp_path / 'card.md'}")
    assert code == 0
    assert "40 rows, 2 labels; train 32, validation 4, test 4" in err
    assert "'top_up'          20   50.0%" in err
    assert "suspicious: 40 texts nearly repeat another text (lines 2, 3, 4, 5, 6, …)" in err
    report = json.loads(out)
    assert report["card"] == str(tmp_path / "card.md")
    assert (tmp_path / "card.labels.png").is_file()
    assert set(report) == {"rows", "labels", "splits", "characters", "suspicious", "files", "sha256", "card"}
    assert report["suspicious"][0] == {
        "finding": "near_duplicates",
        "count": 40,
        "lines": [2, 3, 4, 5, 6],
        "says": "texts nearly repeat another text",
    }


def test_a_card_that_cannot_be_written_is_told_before_any_row_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = _check(tmp_path / "train.csv", "text,category\nbroken", capsys, f"card={tmp_path}/file/card.md")
    assert code == 2
    assert f"card={tmp_path}/file: cannot be written" in err


@pytest.mark.parametrize("key", ["data.validation_path", "data.test_path", "data.patch", "data.taxonomy", None])
def test_a_card_is_not_written_over_what_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str | None) -> None:
    other = tmp_path / ("other.csv" if key else "train.csv")
    other.write_text(GOOD)
    named = [f"{key}={other}"] if key else []
    code, _, err = _check(tmp_path / "train.csv", GOOD, capsys, *named, f"card=file://{other}")
    assert code == 2
    assert err == f"error: card=file://{other}: is read here, and would be written over; choose another file\n"
    assert other.read_text() == GOOD


def test_table_cuts_long_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"text {label} number {number},label{label}\n" for label in range(25) for number in range(4))
    _, _, err = _check(tmp_path / "train.csv", "text,category\n" + rows, capsys)
    assert "… and 5 more, the smallest with 4 rows" in err


def test_tickets_have_nothing_suspicious_but_a_few_long_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(run, []) == 0
    assert [finding["finding"] for finding in json.loads(capsys.readouterr().out)["suspicious"]] == ["length_outliers"]
