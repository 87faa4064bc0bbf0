import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import MAX_TEXT_CHARS, Row, is_blank, read_rows
from pigeonhole.errors import DataError, NotFoundError


def _read(tmp_path: Path, content: bytes | str, name: str = "data.csv", **config: str) -> list[Row]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(DataConfig(path=str(path), **config)))  # type: ignore[arg-type]


def test_rows_know_their_line(tmp_path: Path) -> None:
    rows = _read(tmp_path, 'text,label\n"one\ntwo",a\nthree,b\n')
    assert rows == [Row("one\ntwo", "a", 2), Row("three", "b", 4)]


def test_values_stay_as_they_are_written(tmp_path: Path) -> None:
    content = 'text,label\nNA,007\nnull,1.0\n" None ",true\n"=1+1, ""x""",nan\n'
    assert [(row.text, row.label) for row in _read(tmp_path, content)] == [
        ("NA", "007"),
        ("null", "1.0"),
        (" None ", "true"),
        ('=1+1, "x"', "nan"),
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_kind_of_line_end_is_read(end: str, tmp_path: Path) -> None:
    assert _read(tmp_path, end.join(["text,label", "one,a", "two,b"])) == [Row("one", "a", 2), Row("two", "b", 3)]


def test_line_ends_survive_at_the_border_of_two_blocks(tmp_path: Path) -> None:
    lines = [f"{'x' * (number % 97)}é{number},a" for number in range(4000)]
    rows = _read(tmp_path, "\r\n".join(["text,label", *lines, ""]))
    assert [f"{row.text},{row.label}" for row in rows] == lines
    assert rows[-1].line == 4001


def test_bom_and_blank_lines_hold_no_data(tmp_path: Path) -> None:
    assert _read(tmp_path, "\ufefftext,label\none,a\n\ntwo,b\n\n") == [Row("one", "a", 2), Row("two", "b", 4)]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_spreadsheet_that_writes_semicolons_or_tabs_is_read(mark: str, tmp_path: Path) -> None:
    header, quoted = f'"text"{mark}label', f'"one, or{mark} two"{mark}a'
    rows = _read(tmp_path, f"\ufeff\r\n{header}\r\n{quoted}\r\n\r\nthree, four{mark}b\r\n")
    assert rows == [Row(f"one, or{mark} two", "a", 3), Row("three, four", "b", 5)]


def test_a_column_between_commas_may_have_a_semicolon_in_its_name(tmp_path: Path) -> None:
    assert _read(tmp_path, "text,label,a;b\nx;y,a,z\n") == [Row("x;y", "a", 2)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("text,label\n ,a\nx,a\n,a\n", "line 2: the text is empty (and 1 more row: line 4); remove"),
        ("text,label\nx,a\ny, \n,a\nz,\n", "line 3: the label is empty (and 1 more row: line 5); remove"),
        ("text,label\n" + ",a\n" * 7, "line 2: the text is empty (and 6 more rows: line 3, 4, 5, 6, …); remove"),
    ],
)
def test_all_empty_rows_are_told_at_once(content: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        _read(tmp_path, content)
    assert said in str(raised.value)


def test_usual_column_names_are_found(tmp_path: Path) -> None:
    assert _read(tmp_path, "id,intent,utterance\n1,a,one\n") == [Row("one", "a", 2)]


def test_other_columns_may_be_there_and_empty(tmp_path: Path) -> None:
    assert _read(tmp_path, "text,note,label\none,,a\n") == [Row("one", "a", 2)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xef\xbb\xbf\n\n", "empty"),
        (b"text|label\na|b\n", "bars"),
        (b"text;label\na;b\nc;d;e\n", "line 3: 3 fields, the header has 2; quote fields with semicolons in them"),
        (b"text\tlabel\na\n", "line 2: 1 field, the header has 2; quote fields with tabs in them"),
        (
            b"message,label\na,b\n",
            "no column 'text' or 'sentence' or 'utterance' for the text; found the columns 'message', 'label'",
        ),
        (b"text,text,label\na,b,c\n", "line 1: duplicate column 'text'"),
        (b"text,label" + b"," * 400_000 + b"\n", "line 1: duplicate column ''"),
        (b"text,label\na,b,\n", "line 2: 3 fields, the header has 2"),
        (b"text,label\na,b\n\nonly\n", "line 4: 1 field, the header has 2"),
        (b"text,label\na,b\nonly\nc,d\n", "line 3: 1 field, the header has 2; quote fields with commas in them"),
        (b'text,label\na,b\nonly\n"open', "line 3: 1 field, the header has 2; quote fields with commas in them"),
        (b"text,label\na,b\nonl", "line 3: 1 field, the header has 2; quote fields with commas in them (this is the last row"),
        (b'text,label\n"one\ntwo,a\nb,c\n', "line 2: a quote is opened"),
        (b'text,label\n"one"two,a\n', "line 2: text follows a closing quote"),
        (b"text,label\na,b\n ,b\n", "line 3: the text is empty"),
        ("text,label\na,b\n\u200b,b\n".encode(), "line 3: the text is empty"),
        (b"text,label\na,b\nc, \n", "line 3: the label is empty"),
        (b"text,label\na,b\ncaf\xe9,b\n", "line 3: byte 0xe9 is not UTF-8"),
        (b"text,label\na,b\ncaf\xc3", "line 3: byte 0xc3 is not UTF-8"),
        (b"text,label\n" + b"a,b\n" * 30_000 + b"\xff,b\n", "line 30002: byte 0xff"),
        (b"text,label\na\0,b\n", "line 2: a NUL byte"),
        (b"text,label\na,b\0", "line 2: a NUL byte"),
        (b"text,label\n" + b"a" * (MAX_TEXT_CHARS + 1) + b",b\n", "line 2: the text is too long: 100,001 characters"),
        (b"text,label\n" + b"a" * 200_000 + b",b\n", "line 2: a field is too long"),
        (b"text,label\n" + b"a" * 2_000_000, "line 2: the line is too long"),
        (b"text,label\na," + b"b" * 300 + b"\n", "line 2: the label is too long"),
    ],
)
def test_broken_csv_is_refused_with_its_line(content: bytes, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        _read(tmp_path, content)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_column_that_differs_in_case_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'text'.*found the columns 'Text', 'Label'.*did you mean data\.text=Text"):
        _read(tmp_path, "Text,Label\na,b\n", text="text", label="label")


def test_a_header_with_spaces_around_a_name_is_told_what_no_key_can_say(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="take the spaces around ' label' out of the header"):
        _read(tmp_path, "text, label\na, b\n")


def test_a_file_in_excels_own_encoding_is_refused_with_the_line_that_converts_it(tmp_path: Path) -> None:
    content = "text;label\r\n\u201eGr\u00fc\u00dfe\u201c f\u00fcr 5 \u20ac;a\r\n"
    with pytest.raises(DataError, match=r"line 2: byte 0x84 is not UTF-8; .*iconv -f (\S+) -t utf-8") as raised:
        _read(tmp_path, content.encode("cp1252"))
    encoding = str(raised.value).partition("-f ")[2].split()[0]
    assert content.encode("cp1252").decode(encoding) == content


def test_one_column_cannot_be_both(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="both name the column 'text'"):
        _read(tmp_path, "text,label\na,b\n", text="text", label="text")


def test_many_columns_are_not_all_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="and 20 more"):
        _read(tmp_path, ",".join(f"c{number}" for number in range(30)) + "\n")


def test_message_does_not_show_the_text(tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        _read(tmp_path, "text,label\nmy secret is 1234,b,c\n")
    assert "secret" not in str(raised.value)


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        list(read_rows(DataConfig(path=str(tmp_path / "no.csv"))))


def test_json_lines_give_strings_and_whole_numbers(tmp_path: Path) -> None:
    content = '{"text": "one", "label": 1, "more": [1.5, null]}\n\n{"label": "b", "text": "two\\n"}\n'
    assert _read(tmp_path, content, "data.jsonl") == [Row("one", "1", 1), Row("two\n", "b", 3)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "a", "label": null}', "column 'label' is null"),
        ('{"text": "a", "label": 1.5}', "column 'label' is float"),
        ('{"text": "a", "label": true}', "column 'label' is bool"),
        ('{"text": ["a"], "label": "b"}', "column 'text' is list"),
        ('{"text": "a"}', "no column 'label'; found 'text'"),
        ('{"text": "a", "text": "b", "label": "c"}', "duplicate key"),
        ('{"text": "a", "label": "b", "score": NaN}', "NaN is not JSON"),
        ('{"text": "a", "label": "b"', "not JSON"),
        ('["a", "b"]', "a JSON list"),
        ('{"text": "\\ud800", "label": "b"}', "surrogate"),
        ('{"text": "a", "label": ' + "9" * 5000 + "}", "digits"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_broken_json_line_is_refused(line: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        _read(tmp_path, json.dumps({"text": "good", "label": "b"}) + "\n" + line + "\n", "data.jsonl")
    assert "line 2: " in str(raised.value)
    assert said in str(raised.value)
    assert "sys." not in str(raised.value)  # advice for programmers


def test_json_without_the_columns_lists_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found the columns 'question', 'label'"):
        _read(tmp_path, '{"question": "a", "label": "b"}\n', "data.jsonl")


def _parquet(tmp_path: Path, columns: dict[str, object]) -> DataConfig:
    pq.write_table(pa.table(columns), tmp_path / "data.parquet")
    return DataConfig(path=str(tmp_path / "data.parquet"))


def test_parquet_gives_strings_and_whole_numbers(tmp_path: Path) -> None:
    labels = pa.array(["x", "y"]).dictionary_encode()
    assert list(read_rows(_parquet(tmp_path, {"text": ["NA", "two"], "label": [7, 8]}))) == [
        Row("NA", "7", 1),
        Row("two", "8", 2),
    ]
    assert [row.label for row in read_rows(_parquet(tmp_path, {"text": ["one", "two"], "label": labels}))] == ["x", "y"]


def test_parquet_is_read_in_batches_with_row_numbers(tmp_path: Path) -> None:
    config = _parquet(tmp_path, {"text": [f"text {number}" for number in range(10_000)], "label": ["a"] * 10_000})
    assert [row.line for row in read_rows(config)] == list(range(1, 10_001))


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"text": ["a", "b"], "label": ["x", None]}, "line 2: column 'label' is null"),
        ({"text": ["a", ""], "label": ["x", "y"]}, "line 2: the text is empty"),
        ({"text": ["a"], "label": [1.5]}, "column 'label' is of type double"),
        ({"question": ["a"], "label": ["x"]}, "found the columns 'question', 'label'"),
    ],
)
def test_broken_parquet_is_refused(columns: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as raised:
        list(read_rows(_parquet(tmp_path, columns)))
    assert said in str(raised.value)


@pytest.mark.parametrize("task", ["single_label", "multi_label"])
def test_parquet_strings_that_are_no_unicode_are_refused_with_their_row(task: str, tmp_path: Path) -> None:
    broken = pa.array([b"fine"] * 5000 + [b"caf\xe9"], pa.binary()).view(pa.string())
    texts, labels = pa.array(["a text"] * 5001), broken
    if task == "multi_label":
        labels = pa.ListArray.from_arrays(range(5002), broken)
    config = replace(_parquet(tmp_path, {"text": texts, "label": labels}), task=task)
    with pytest.raises(DataError, match=r"data\.parquet: line 5001: column 'label' is not UTF-8"):
        list(read_rows(config))


def test_parquet_with_a_column_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"]), pa.array(["b"]), pa.array(["x"])]
    pq.write_table(pa.table(columns, names=["text", "text", "label"]), tmp_path / "data.parquet")
    with pytest.raises(DataError, match="duplicate column 'text'"):
        list(read_rows(DataConfig(path=str(tmp_path / "data.parquet"))))


def test_cut_off_parquet_is_refused(tmp_path: Path) -> None:
    config = _parquet(tmp_path, {"text": ["a"], "label": ["x"]})
    path = Path(config.path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(read_rows(config))


@pytest.mark.parametrize(
    ("text", "blank"), [("", True), (" \t", True), ("\u200b \u2060", True), ("\x07", True), ("a", False), ("👍", False)]
)
def test_blank_is_what_shows_nothing(text: str, blank: bool) -> None:
    assert is_blank(text) is blank
