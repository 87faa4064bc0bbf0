import csv
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tests.scoring.conftest import write_csv, write_jsonl

from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.read import read_rows
from pigeonhole.errors import DataError
from pigeonhole.scoring import source as module
from pigeonhole.scoring.plan import make_shards
from pigeonhole.scoring.source import Rows, Source, Wanted, find_files, problem_of, read, scan

WANTED = Wanted("text", None, 8192)


def scanned(*paths: Path, wanted: Wanted = WANTED) -> Source:
    return scan([str(path) for path in paths], wanted)


def whole(source: Source, wanted: Wanted = WANTED) -> Rows:
    [shard] = make_shards(source, max(source.rows, 1))
    return read(source, shard.spans, wanted)


def reasons(rows: Rows) -> list[tuple[int, int | None, str]]:
    return [(bad.row, bad.line, bad.reason) for bad in rows.bad]


def test_csv_keeps_every_value_as_a_string(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ["\ufeffid,text", "007,NA", "", '8,"two', 'lines, ""quoted"""', "9,null"])
    rows = whole(scanned(path))
    assert rows.table.to_pylist() == [
        {"id": "007", "text": "NA"},
        {"id": "8", "text": 'two\nlines, "quoted"'},
        {"id": "9", "text": "null"},
    ]
    assert [place[1:] for place in rows.places] == [(1, 2), (2, 4), (3, 6)]
    assert rows.bad == []


def test_bad_rows_of_a_csv_file_have_their_place_and_reason(tmp_path: Path) -> None:
    lines = ["text,id", "good,1", "  ,2", "a\0b,3", "too,many,4", f"{'x' * 200_000},5", "caf\udce9,6", "fine,\udcff", "good,8"]
    rows = whole(scanned(write_csv(tmp_path / "a.csv", lines), wanted=Wanted("text", "id", 8192)), Wanted("text", "id", 8192))
    assert reasons(rows) == [
        (2, 3, "the text is blank"),
        (3, 4, "the text holds a NUL character"),
        (4, 5, "3 fields, the header has 2"),
        (5, 6, "too long: 200,000 characters, at most 8,192"),
        (6, 7, "column 'text' is not UTF-8"),
        (7, 8, "column 'id' is not UTF-8"),
    ]
    assert [bad.id for bad in rows.bad] == ["2", "3", None, "5", None, None]
    assert rows.texts() == ["good", "good"]
    assert csv.field_size_limit() == 131_072


@pytest.mark.parametrize("mark", [";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_csv_is_read_as_train_reads_it_whatever_divides_its_columns_and_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mark: str, end: str
) -> None:
    monkeypatch.setattr(module, "MARK_ROWS", 2)
    rows = [
        ("text", 'label, or "queue"'),
        ("a, b", "x"),
        (f"two{end}lines", "y"),
        (f"one{mark}cell", "x"),
        ("c", "y"),
        ("d", "x"),
    ]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8-sig", newline="") as stream:
        csv.writer(stream, delimiter=mark, lineterminator=end).writerows(rows)
    source = scanned(path)
    found = [read(source, shard.spans, WANTED) for shard in make_shards(source, 1)]
    assert [row for part in found for row in part.table.to_pylist()] == [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    trained = read_rows(DataConfig(path=str(path), label=rows[0][1]))
    places = [(text, place[2]) for part in found for text, place in zip(part.texts(), part.places, strict=True)]
    assert places == [(row.text, row.line) for row in trained]


def test_files_of_one_table_may_be_divided_by_different_marks(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["text,id", "a;b,1"])
    write_csv(tmp_path / "b.csv", ["text;id", "c,d;2"])
    assert whole(scanned(tmp_path / "a.csv", tmp_path / "b.csv")).table.to_pylist() == [
        {"text": "a;b", "id": "1"},
        {"text": "c,d", "id": "2"},
    ]


def test_jsonl_keeps_types_that_a_column_has_throughout(tmp_path: Path) -> None:
    rows = [
        {"text": "a", "n": 1, "x": 1, "b": True, "mixed": "s", "long": 1 << 60, "deep": {"k": [1]}},
        {"text": 12, "n": 2, "x": 0.5, "b": None, "mixed": 3, "long": 1, "deep": None},
        {"text": "c", "later": "new"},
    ]
    table = whole(scanned(write_jsonl(tmp_path / "a.jsonl", rows))).table
    types = {"text": "string", "n": "int64", "x": "double", "b": "bool", "mixed": "string", "long": "int64", "deep": "string"}
    assert {field.name: str(field.type) for field in table.schema} == types | {"later": "string"}
    assert table.column("text").to_pylist() == ["a", "12", "c"]
    assert table.column("mixed").to_pylist() == ["s", "3", None]
    assert table.column("deep").to_pylist() == ['{"k":[1]}', None, None]


@pytest.mark.parametrize("number", [(1 << 53) + 1, -(1 << 53) - 1, 1 << 64])
def test_a_whole_number_that_a_double_cannot_hold_keeps_its_digits_beside_fractions(tmp_path: Path, number: int) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "n": number}, {"text": "b", "n": 0.5}])
    assert whole(scanned(path)).table.column("n").to_pylist() == [str(number), "0.5"]


def test_bad_rows_of_a_jsonl_file_have_their_place_and_reason(tmp_path: Path) -> None:
    rows = [{"text": "good"}, "\n", {"text": None}, "{broken\n", {"text": ["a"]}, {"other": 1}, "[1]\n", {"text": True}]
    found = whole(scanned(write_jsonl(tmp_path / "a.jsonl", rows)))
    assert reasons(found) == [
        (2, 3, "null in place of a text"),
        (3, 4, "not a JSON object in UTF-8"),
        (4, 5, "list in place of a text"),
        (5, 6, "null in place of a text"),
        (6, 7, "a JSON list in place of an object"),
        (7, 8, "bool in place of a text"),
    ]
    assert found.texts() == ["good"]


def test_parquet_keeps_its_types_and_finds_bad_rows(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"caf\xe9", b"a\0b", None, b" "], pa.binary()).cast(pa.large_binary()).view(pa.large_string())
    table = pa.table({"text": broken, "when": pa.array([1, 2, 3, 4, 5], pa.timestamp("s")), "id": [10, 11, 12, 13, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    wanted = Wanted("text", "id", 8192)
    rows = whole(scanned(tmp_path / "a.parquet", wanted=wanted), wanted)
    assert rows.texts() == ["fine"]
    assert rows.table.schema.field("when").type == pa.timestamp("ms")
    assert [(bad.row, bad.id, bad.reason) for bad in rows.bad] == [
        (2, "11", "the text is not UTF-8"),
        (3, "12", "the text holds a NUL character"),
        (4, "13", "null in place of a text"),
        (5, None, "the text is blank"),
    ]


def test_a_parquet_row_with_broken_bytes_in_another_column_is_a_bad_row(tmp_path: Path) -> None:
    broken = pa.array([b"fine", b"caf\xe9", b"good"], pa.binary()).view(pa.string())
    late = pa.array([1, 2, 3], pa.timestamp("ns"))  # with nanoseconds, which Python does not have
    pq.write_table(pa.table({"text": ["a", "b", "c"], "id": broken, "when": late}), tmp_path / "a.parquet")
    wanted = Wanted("text", "id", 8192)
    rows = whole(scanned(tmp_path / "a.parquet", wanted=wanted), wanted)
    assert rows.texts() == ["a", "c"]
    assert [(bad.row, bad.id, bad.reason) for bad in rows.bad] == [(2, None, "column 'id' is not UTF-8")]


@pytest.mark.parametrize("values", [[1, 2], pa.array(["1", "2"]).dictionary_encode()], ids=["whole numbers", "dictionary"])
def test_parquet_texts_may_be_whole_numbers_or_a_dictionary(tmp_path: Path, values: object) -> None:
    pq.write_table(pa.table({"text": values}), tmp_path / "a.parquet")
    assert whole(scanned(tmp_path / "a.parquet")).texts() == ["1", "2"]


@pytest.mark.parametrize("format_", ["csv", "jsonl", "parquet"])
def test_any_cut_into_shards_gives_every_row_once_in_order(tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MARK_ROWS", 7)
    numbers = iter(range(1000))
    paths = []
    for file, rows in enumerate((23, 0, 1, 40)):
        texts = [f'text "{next(numbers)}",\nmore' for _ in range(rows)]
        path = tmp_path / f"{file}.{format_}"
        if format_ == "csv":
            write_csv(path, ["text", *('"' + text.replace('"', '""') + '"' for text in texts)])
        elif format_ == "jsonl":
            write_jsonl(path, [{"text": text} for text in texts] or ["\n"])
        else:
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=9)
        paths.append(path)
    source = scanned(*paths)
    for shard_rows in (1, 5, 13, 64, 100):
        shards = make_shards(source, shard_rows)
        found = [text for shard in shards for text in read(source, shard.spans, WANTED).texts()]
        assert found == [f'text "{number}",\nmore' for number in range(64)]
        assert [shard.first for shard in shards] == list(range(0, 64, shard_rows))


def test_random_csv_files_read_as_the_csv_module_reads_them(tmp_path: Path) -> None:
    generator = random.Random(0)
    for number in range(20):
        rows = [["".join(generator.choices('a,"\n é😀', k=5)) + "x" for _ in range(2)] for _ in range(30)]
        path = tmp_path / f"{number}.csv"
        with path.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["text", "other"], *rows])
        assert whole(scanned(path)).table.to_pylist() == [{"text": row[0], "other": row[1]} for row in rows]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b"\n\n", "blank lines only"),
        ("a.csv", b"text\n", "there are no rows"),
        ("a.csv", b"body,x\na,b\n", "no column 'text'; found 'body', 'x'; name the right one with text="),
        ("a.csv", b"text,text\na,b\n", "stands twice in the header"),
        ("a.csv", b"text,\xff\na,b\n", "the header is not UTF-8"),
        ("a.csv", b'text\n"never closed\n', "line 2: not CSV"),
        ("a.csv", b'text\n"a"b\n', "line 2: not CSV"),
        ("a.csv", b"\x1f\x8b\x08\x00", "gzip"),
        ("a.xlsx", b"PK\x03\x04", "Excel workbook"),
        ("a.csv", "text\na\n".encode("utf-16-le"), "UTF-16 text without a mark"),
        ("a.jsonl", b"not json\n", "line 1: not a JSON object"),
        ("a.jsonl", b'{"body": 1}\n', "no column 'text'; found 'body'"),
        ("a.parquet", b"PAR1 and nothing more", "not a readable Parquet file"),
        ("a.parquet", b"text\na\n", "does not begin with PAR1"),
    ],
)
def test_a_file_that_is_no_table_is_refused_before_any_work(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        scanned(tmp_path / name)


def test_a_damaged_parquet_page_is_found_before_any_work(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [str(number) * 9 for number in range(5000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[2000:2400] = b"\xff" * 400
    path.write_bytes(data)
    with pytest.raises(DataError, match="not a readable Parquet file"):
        scanned(path)


def test_a_parquet_text_of_another_type_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [[1.0]]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"column 'text' is of type list<.*>; strings \(or whole numbers\) are needed"):
        scanned(tmp_path / "a.parquet")


def test_files_with_other_columns_or_types_are_refused(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", ["text,id", "a,b"])
    write_csv(tmp_path / "b.csv", ["text", "a"])
    with pytest.raises(DataError, match=r"b\.csv: columns text; .*a\.csv has text, id"):
        scanned(tmp_path / "a.csv", tmp_path / "b.csv")
    write_csv(tmp_path / "b.csv", ["id,text", "a,b"])
    with pytest.raises(DataError, match=r"b\.csv: columns id, text; .*a\.csv has text, id"):
        scanned(tmp_path / "a.csv", tmp_path / "b.csv")
    pq.write_table(pa.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": [1], "text": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: columns n, text; .*a\.parquet has text, n"):
        scanned(tmp_path / "a.parquet", tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["a"], "n": [1.5]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"column 'n' is of type double, in .* of type int64"):
        scanned(tmp_path / "a.parquet", tmp_path / "b.parquet")


@pytest.mark.parametrize("format_", ["csv", "parquet"])
def test_a_file_that_lost_rows_is_noticed(tmp_path: Path, format_: str) -> None:
    path = tmp_path / f"a.{format_}"

    def write(texts: list[str]) -> None:
        if format_ == "csv":
            write_csv(path, ["text", *texts])
        else:
            pq.write_table(pa.table({"text": texts}), path)

    write(["a", "b", "c"])
    source = scanned(path)
    write(["a"])
    with pytest.raises(DataError, match="has fewer rows than when the job began"):
        whole(source)


def test_files_are_found_by_glob_folder_and_name(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "_note.csv", ".hidden.csv", "deep/c.csv", "deep/_errors/d.csv", "e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text\na\n")

    def found(url: str) -> list[str]:
        return [name.removeprefix(f"file://{tmp_path}/") for name in find_files(url)]

    assert found(f"{tmp_path}/*.csv") == ["a.csv", "b.csv"]
    assert found(f"file://{tmp_path}/**/*.csv") == ["a.csv", "b.csv", "deep/c.csv"]
    assert found(str(tmp_path)) == ["a.csv", "b.csv", "deep/c.csv"]
    assert found(str(tmp_path / "_note.csv")) == ["_note.csv"]
    assert found(str(tmp_path / "e.txt")) == ["e.txt"]  # named by itself it may have any name, as for train


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("none.csv", "no file is there"),
        ("*.txt", r"none of the 1 files there ends with .parquet, .*; name the file itself"),
        ("*", "several formats"),
    ],
)
def test_an_input_without_one_table_is_refused(tmp_path: Path, url: str, message: str) -> None:
    for name in ("a.csv", "b.jsonl", "c.txt"):
        (tmp_path / name).write_text("text\n")
    with pytest.raises(DataError, match=message):
        find_files(str(tmp_path / url))


def test_what_the_api_takes_is_no_problem() -> None:
    assert [problem_of(text, 10) for text in ("a", "é" * 10, "\u2028x", "x" * 10)] == [None] * 4
    assert problem_of("x" * 11, 10) == "too long: 11 characters, at most 10"
    assert problem_of("\u00a0\u2003", 10) == "the text is blank"
    assert problem_of("\ud800", 10) == "the text is not UTF-8"
