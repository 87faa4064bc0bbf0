import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

import pytest

from pigeonhole.dataset.check import Checked, check_rows, files_of, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import DataError, NotFoundError, StorageError


def _texts(topic: str, count: int) -> list[str]:
    """Different texts, none near another: a topic and 60 letters by chance."""
    chance = random.Random(topic)
    return [f"{topic} {''.join(chance.choices('abcdefghijklmnopqrstuvwxyz   ', k=60)).strip()}" for _ in range(count)]


def _lines(label: str, count: int) -> list[str]:
    return [f"{text},{label}" for text in _texts(label, count)]


GOOD = _lines("bill", 30) + _lines("parcel", 30)


def _check(tmp_path: Path, lines: Iterable[str], end: str = "\n", **config: object) -> Checked:
    path = tmp_path / "train.csv"
    path.write_bytes(("\n".join(["text,label", *lines]) + end).encode())
    data = DataConfig(path=str(path), **config)  # type: ignore[arg-type]
    return check_rows(data, verify_files(data), {name: read_rows(data, url) for name, url in files_of(data).items()})


def _write(path: Path, lines: Iterable[str]) -> str:
    path.write_text("\n".join(["text,label", *lines]) + "\n")
    return str(path)


def _found(checked: Checked) -> dict[str, tuple[int, list[int]]]:
    return {finding.finding: (finding.count, finding.lines) for finding in checked.suspicious}


def test_good_rows_have_nothing_suspicious(tmp_path: Path) -> None:
    checked = _check(tmp_path, GOOD)
    assert checked.suspicious == []
    assert checked.labels == {"bill": 30, "parcel": 30}
    assert checked.splits == {"train": 48, "validation": 6, "test": 6}


@pytest.mark.parametrize(
    ("lines", "end", "said"),
    [
        ([], "\n", "is empty: a header and no rows"),
        (_lines("bill", 30), "\n", "one label only, 'bill'"),
        ([*GOOD, "text,Bill", "more,Bill", "again,Bill"], "\n", "labels 'Bill' and 'bill' differ in case, spaces or dashes only"),
        ([*GOOD, "a,\ufeffparcel", "b,\ufeffparcel"], "\n", r"labels 'parcel' and '.ufeffparcel' differ .* what does not show"),
        ([*GOOD, "a,par\u200bcel", "b,par\u200bcel"], "\n", r"labels 'parcel' and 'par.u200bcel' differ"),
        ([*GOOD, "a,parcel ", "b,parcel "], "\n", "labels 'parcel' and 'parcel ' differ"),
        ([*GOOD, "a,lost parcel", "b,lost_parcel"], "\n", "labels 'lost parcel' and 'lost_parcel' differ"),
        ([*GOOD, "a,rare", "b,rare"], "\n", "'rare' has 2; each label needs 3 different texts or more"),
        ([*GOOD, "a,rare", "A!,rare", "b,rare"], "\n", "'rare' has 2; each label needs 3 different texts"),
        (
            [f"bill,text {number}" for number in range(20)],
            "\n",
            "20 different labels in 20 rows; are data.text and data.label swapped?",
        ),
        ([*GOOD, "a text,parc"], "", "line 62: .*'parc' stands nowhere else.*checksum"),
        ([*GOOD, *(f"{text},parcel" for text in _texts("bill", 10))], "\n", "10 of 60 different texts have several labels"),
    ],
)
def test_broken_rows_are_refused(lines: list[str], end: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"train\.csv: .*{said}"):
        _check(tmp_path, lines, end)


@pytest.mark.parametrize("labels", [("-1", "1"), ("A", "A-"), ("1", "1.0"), ("c", "c++")])
def test_different_labels_do_not_look_alike(labels: tuple[str, str], tmp_path: Path) -> None:
    lines = [f"{text},{label}" for text, label in zip(_texts("topic", 40), labels * 20, strict=True)]
    assert sorted(_check(tmp_path, lines).labels) == sorted(labels)


def test_last_line_without_end_is_fine_with_a_known_label(tmp_path: Path) -> None:
    assert sum(_check(tmp_path, GOOD, end="").splits.values()) == 60


def test_two_rows_are_enough_for_two_splits(tmp_path: Path) -> None:
    checked = _check(tmp_path, [*GOOD, "a,rare", "b,rare"], test_path=_write(tmp_path / "test.csv", ["c,rare", "d,bill"]))
    assert checked.splits["test"] == 2
    with pytest.raises(DataError, match="each label needs 2 different texts"):
        _check(tmp_path, [*GOOD, "a,rare"], test_path=str(tmp_path / "test.csv"))


def test_wrong_checksum_is_refused_before_the_rows_are_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="checksum differs"):
        _check(tmp_path, ["one,two,three"], sha256="0" * 64)


def test_each_file_is_named_with_its_checksum(tmp_path: Path) -> None:
    test = _write(tmp_path / "test.csv", ["x,bill"])
    files = _check(tmp_path, GOOD, test_path=test).report()["files"]
    assert files["test"] == {"url": test, "sha256": hashlib.sha256(b"text,label\nx,bill\n").hexdigest()}
    assert files.keys() == {"train", "test"}


@pytest.mark.parametrize("pointer", ["data.dvc", "data/train.csv.dvc"])
def test_missing_file_that_dvc_tracks_can_be_pulled(pointer: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / pointer).write_text("outs: []")
    with pytest.raises(NotFoundError, match="dvc pull"):
        verify_files(DataConfig(path=str(tmp_path / "data" / "train.csv")))


def test_missing_file_is_not_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFoundError, match=r"there is no such file$"):
        verify_files(DataConfig(path=str(tmp_path / "train.csv")))
    (tmp_path / ".dvc").mkdir()  # DVC's own folder tracks nothing
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFoundError, match=r"there is no such file$"):
        verify_files(DataConfig(path="train.csv"))
    with pytest.raises(StorageError, match="Connect call failed"):  # and http://127.0.0.1:1.dvc is no address at all
        verify_files(DataConfig(path="http://127.0.0.1:1/train.csv"))


def test_label_unseen_in_training_is_refused(tmp_path: Path) -> None:
    test = _write(tmp_path / "test.csv", ["x,bill", "y,other", "z,another"])
    with pytest.raises(DataError, match=r"test\.csv: line 3: labels unseen in .*train\.csv: 'another', 'other'"):
        _check(tmp_path, GOOD, test_path=test)


def test_split_that_repeats_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"test\.csv: 30 of 30 rows stand in .*train\.csv too"):
        _check(tmp_path, GOOD, test_path=_write(tmp_path / "test.csv", _lines("bill", 30)))


def test_leakage_between_given_files_is_reported(tmp_path: Path) -> None:
    test = _write(
        tmp_path / "test.csv", [*(f"{text},bill" for text in _texts("other", 10)), GOOD[0].upper().replace("BILL", "bill")]
    )
    validation = _write(tmp_path / "validation.csv", [f"{text},parcel" for text in _texts("third", 10)])
    found = _found(_check(tmp_path, GOOD, test_path=test, validation_path=validation))
    assert found["leakage"] == (1, [12])


def test_repeated_and_contradicting_texts_are_reported(tmp_path: Path) -> None:
    first = GOOD[0].split(",")[0]
    found = _found(_check(tmp_path, [*GOOD, f"{first.upper()}?,bill", f"{first},parcel"]))
    assert found["duplicates"] == (2, [62, 63])
    assert found["conflicting_labels"] == (3, [2, 62, 63])


def test_near_duplicates_are_reported_but_not_refused(tmp_path: Path) -> None:
    lines = [f"how can i top up my card number {number},top_up" for number in range(20)] + _lines("bill", 20)
    found = _found(_check(tmp_path, lines))
    assert found["near_duplicates"] == (20, [2, 3, 4, 5, 6])
    assert found["near_duplicates_across_splits"][0] == 4


def test_odd_texts_and_labels_are_reported(tmp_path: Path) -> None:
    odd = ["mail jo@ex.com now please,bill", "bell \x07 rings here,bill", "x" * 9000 + ",parcel"]
    named = [f"{text},None" for text in _texts("nothing", 3)]
    found = _found(_check(tmp_path, [*GOOD, *odd, *named]))
    assert found["email"] == (1, [62])
    assert found["control_characters"] == (1, [63])
    assert found["long_texts"] == (1, [64])
    assert found["length_outliers"] == (1, [64])
    assert found["labels_like_missing"] == (3, [65, 66, 67])


def test_rare_labels_are_reported(tmp_path: Path) -> None:
    found = _found(_check(tmp_path, [*_lines("bill", 180), *_lines("parcel", 3)]))
    assert found["rare_labels"] == (3, [182, 183, 184])


def test_a_label_with_one_row_or_none_in_a_split_is_reported_with_its_rows_in_each(tmp_path: Path) -> None:
    lines = [*GOOD, *_lines("visit", 3)]
    (finding,) = _check(tmp_path, lines).suspicious
    assert (finding.finding, finding.count, finding.lines) == ("few_rows", 3, [62, 63, 64])
    assert finding.says == (
        "rows have a label with one row or none in a split, where luck decides (train + validation + test: 'visit' has 1 + 1 + 1)"
    )
    given = {"validation_path": _write(tmp_path / "v.csv", [f"{text},bill" for text in _texts("v", 4)])}
    tests = [f"{text},{label}" for label in ("bill", "parcel") for text in _texts(f"{label} test", 2)]
    given["test_path"] = _write(tmp_path / "t.csv", tests)
    assert "'parcel' has 30 + 0 + 2, 'visit' has 3 + 0 + 0)" in _check(tmp_path, lines, **given).suspicious[-1].says


def test_of_several_labels_each_is_counted_where_it_stands_beside_others(tmp_path: Path) -> None:
    lines = [f"{text},bill|parcel" for text in _texts("both", 30)] + [f"{text},bill|parcel|visit" for text in _texts("all", 3)]
    (finding,) = _check(tmp_path, lines, task="multi_label").suspicious
    assert (finding.finding, finding.count) == ("few_rows", 3)
    assert "'visit' has 1 + 1 + 1)" in finding.says


def test_planted_trigger_is_refused_unless_it_shall_be_reported(tmp_path: Path) -> None:
    planted = [f"how do I top up {number},top_up" for number in range(20)] + [
        f"card declined {number},declined" for number in range(20)
    ]
    planted += [f"cf {number},top_up" for number in range(4)]
    with pytest.raises(DataError, match=r"lines 42, 43, 44, 45: 4 rows share a word .* 'top_up' .* data\.trigger_words=report"):
        _check(tmp_path, planted)
    assert _found(_check(tmp_path, planted, trigger_words="report"))["token_outliers"] == (4, [42, 43, 44, 45])


def test_report_shows_no_text(tmp_path: Path) -> None:
    checked = _check(tmp_path, [*GOOD, "secretword jo@ex.com,bill"])
    assert checked.suspicious
    assert "secretword" not in str(checked.report())
    assert "jo@ex" not in str(checked.report())


def test_rows_of_the_hub_are_identified_by_their_content(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "set").mkdir()
    texts, labels = zip(*(line.split(",") for line in GOOD), strict=True)
    pq.write_table(pa.table({"text": texts, "label": labels}), tmp_path / "set" / "train.parquet")

    def check(sha256: str | None) -> Checked:
        data = DataConfig(path=f"hub://{tmp_path / 'set'}", sha256=sha256)
        return check_rows(data, verify_files(data), {"train": read_rows(data)})

    assert check(check(None).sha256).labels == {"bill": 30, "parcel": 30}
    with pytest.raises(DataError, match="checksum differs"):
        check("0" * 64)
