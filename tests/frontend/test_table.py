import csv
import io
import zipfile

import openpyxl
import pandas as pd
import pytest
from frontend import table
from frontend.table import Unreadable, beside, likely_text_column, read_table, safe_csv


def workbook(rows: list[list[object]]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in rows:
        sheet.append(row)
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


FILES = {
    "a.csv": b"id,text\n007,NA\n008,null\n",
    "b.csv": "\ufeffid;text\r\n007;NA\r\n008;null\r\n".encode(),
    "c.tsv": b"id\ttext\n007\tNA\n008\tnull\n",
    "d.jsonl": b'{"id": "007", "text": "NA"}\n\n{"id": "008", "text": "null"}\n',
    "e.XLSX": workbook([["id", "text"], ["007", "NA"], ["008", "null"]]),
}


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_keeps_its_cells_as_they_stand(name: str) -> None:
    assert read_table(name, FILES[name]).to_dict("list") == {"id": ["007", "008"], "text": ["NA", "null"]}


def repacked(data: bytes, part: str, content: bytes) -> bytes:
    """A workbook with another content of one of its parts."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, content if name == part else source.read(name))
    return stream.getvalue()


BOOK = FILES["e.XLSX"]

REFUSED = {
    "sheet.xlsx": (repacked(BOOK, "xl/worksheets/sheet1.xml", b"<worksheet><sheetData><row>"), "a damaged one"),
    "part.xlsx": (repacked(BOOK, "xl/workbook.xml", b"no XML"), "a damaged one"),
    "deep.jsonl": (b'{"text": ' + b"[" * 100_000, "nested too deeply"),
    "shifted.csv": (b"a,b\n1,2,\n", "row 1 has 3 cells"),
    "twice.csv": (b"a,a\n1,2\n", "same name"),
    "twice.xlsx": (workbook([[1, "1"], ["a", "b"]]), "same name"),
    "latin.csv": ("text\ncafé\n".encode("latin-1"), "not UTF-8"),
    "quote.csv": (b'text\na\n"open\n', "row 2 opens a quotation mark that is never closed"),
    "header-quote.csv": (b'"text\na\n', "the header opens a quotation mark that is never closed"),
    "after-quote.csv": (b'text\n"a"b\n', "row 1 goes on behind a quotation mark"),
    "long.csv": (b"text\na\n" + b"x" * 200_000 + b"\n", "row 2 has a cell of more than 131,072 characters: shorten it"),
    "long-quote.csv": (b'text\n"' + b"open\n" * 50_000, "row 1 has a cell of more than 131,072 characters: .* close"),
    "header.csv": (b"text\n", "no rows"),
    "empty.csv": (b"", "no rows"),
    "list.jsonl": (b"[1]\n", "not a JSON object"),
    "broken.jsonl": (b"{\n", "cannot be read as jsonl"),
    "broken.xlsx": (b"PK?", "no Excel workbook"),
    "old.xls": (b"", "none of csv"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_table_is_refused_with_the_reason(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(Unreadable, match=reason):
        read_table(name, data)


def test_a_workbook_that_unpacks_to_far_more_than_it_is_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_UNPACKED_BYTES", 8 << 20)
    bomb = repacked(BOOK, "xl/theme/theme1.xml", bytes(64 << 20))
    assert len(bomb) < 100_000
    with pytest.raises(Unreadable, match="unpacks to 64 MiB, at most 8 MiB"):
        read_table("bomb.xlsx", bomb)


def sheet(rows: str) -> bytes:
    namespace = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{namespace}"><sheetData>{rows}</sheetData></worksheet>'.encode()


FAR = '<row r="1"><c r="A1"><v>1</v></c><c r="XFD1"><v>2</v></c></row>'
DOWN = "".join(f'<row r="{n}"><c r="A{n}"><v>1</v></c></row>' for n in range(2, 400))
HUGE = {
    "far.xlsx": repacked(BOOK, "xl/worksheets/sheet1.xml", sheet(FAR + DOWN)),
    "gap.xlsx": repacked(BOOK, "xl/worksheets/sheet1.xml", sheet(f'{FAR}<row r="99999"><c r="A99999"><v>1</v></c></row>')),
    "unnamed.xlsx": repacked(BOOK, "xl/worksheets/sheet1.xml", sheet(f"<row>{'<c/>' * 50_000}</row>")),
    "utf16.xlsx": repacked(BOOK, "xl/worksheets/sheet1.xml", sheet(FAR + DOWN).decode().encode("utf-16")),
    "keys.jsonl": b"".join(b'{"a%d": 1}\n' % n for n in range(3_000)),
    "columns.csv": b",".join(b"a%d" % n for n in range(20_000)) + b"\n" + b"," * 19_999 + b"\n",
}


@pytest.mark.parametrize("name", HUGE)
def test_a_small_file_that_becomes_a_huge_table_is_refused_before_it_does(name: str) -> None:
    with pytest.raises(Unreadable, match="leave out columns, or split it"):
        read_table(name, HUGE[name])


def test_any_part_of_a_workbook_has_so_many_elements_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its styles and strings are read before its rows."""
    monkeypatch.setattr(table, "MAX_CELLS", 1000)
    with pytest.raises(Unreadable, match="more than 1,000 cells"):
        read_table("a.xlsx", repacked(BOOK, "xl/styles.xml", f"<styleSheet>{'<xf/>' * 3000}</styleSheet>".encode()))


def test_a_cell_without_a_value_far_to_the_right_makes_no_table_wide() -> None:
    """As a spreadsheet writes what has a colour alone."""
    coloured = '<row r="1"><c r="A1"><v>1</v></c><c r="XFD1" s="0"/></row>' + DOWN
    assert read_table("a.xlsx", repacked(BOOK, "xl/worksheets/sheet1.xml", sheet(coloured))).shape == (398, 1)


def test_what_ends_a_line_elsewhere_ends_none_of_json() -> None:
    assert read_table("a.jsonl", '{"text": "a\u2028b\u0085c"}\r\n{"text": "d"}'.encode())["text"].tolist() == [
        "a\u2028b\u0085c",
        "d",
    ]


def test_too_many_rows_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "MAX_ROWS", 2)
    with pytest.raises(Unreadable, match="has 3 rows; at most 2"):
        read_table("a.csv", b"text\n1\n2\n3\n")
    with pytest.raises(Unreadable, match="has 3 rows; at most 2"):
        read_table("a.xlsx", workbook([["text"], ["1"], ["2"], ["3"]]))
    assert len(read_table("a.csv", b"text\n1\n2\n")) == 2


def test_a_number_keeps_the_digits_that_it_was_written_with() -> None:
    line = b'{"price": 1.10, "order": 12345678901234567890.5, "long": ' + b"7" * 5000 + b"}"
    assert read_table("a.jsonl", line).to_dict("list") == {
        "price": ["1.10"],
        "order": ["12345678901234567890.5"],
        "long": ["7" * 5000],
    }


def test_an_absent_cell_is_an_empty_text() -> None:
    assert read_table("a.jsonl", b'{"a": "1"}\n{"b": null}\n').to_dict("list") == {"a": ["1", ""], "b": ["", ""]}


def test_the_text_column_is_found_by_name_or_else_by_length() -> None:
    assert likely_text_column(pd.DataFrame({"id": ["long long"], "Message": ["x"]})) == "Message"
    assert likely_text_column(pd.DataFrame({"id": ["1"], "what": ["much longer"]})) == "what"


@pytest.mark.parametrize("cell", ["=1+1", "+1", "-1", "@x", "\t=1", "\r=1", "  =1", "\uff1d1"])
def test_no_cell_and_no_header_of_a_download_is_a_formula(cell: str) -> None:
    data = safe_csv(pd.DataFrame({cell: [cell], "b": ["plain"], "score": [0.5]}))
    assert data.startswith(b"\xef\xbb\xbf")
    back = pd.read_csv(io.BytesIO(data), dtype=str)
    assert back.columns[0].startswith("'")
    assert back.iloc[0, 0].startswith("'")
    assert back.iloc[0].tolist()[1:] == ["plain", "0.5"]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize(
    "cell",
    ["foo;=1+1", "foo; +1", 'foo;"=1+1"', "foo;\uff1d1", "foo\t@x", "foo\n=1+1;", 'a "b"\r\n -1', '"=1+1"', "a;;=1", "a;'=1;=2"],
)
def test_no_cell_is_a_formula_wherever_a_spreadsheet_splits_the_line(cell: str, separator: str) -> None:
    """Excel takes the separator of its country; the csv module reads quotation marks as Excel does: only where a cell begins."""
    data = safe_csv(pd.DataFrame({"id": ["7"], cell: [cell], "text": [cell], "last": ["x"]}))
    rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), delimiter=separator)
    assert [found for row in rows for found in row if found.lstrip(' "').startswith(table.FORMULA)] == []


@pytest.mark.parametrize("cell", ["plain; text", "a - b; c=d", "5;6", "one,-two", "e-mail@example.org", "a\nb"])
def test_what_is_no_formula_comes_home_as_it_was(cell: str) -> None:
    back = pd.read_csv(io.BytesIO(safe_csv(pd.DataFrame({"id": ["7"], "text": [cell]}))), dtype=str)
    assert back.loc[0, "text"] == cell


def test_two_headers_that_are_one_once_they_are_guarded_both_come_home() -> None:
    data = safe_csv(pd.DataFrame({"=a": ["x"], "'=a": ["-y"]}))
    assert data.decode("utf-8-sig").splitlines() == ["'=a,'=a", "x,'-y"]


def test_an_answer_takes_a_name_that_the_file_has_not() -> None:
    table = pd.DataFrame({"text": ["a"], "predicted_label": ["old"], "predicted_label_2": ["older"]})
    found = beside(table, pd.DataFrame({"label": ["new"], "score": [0.5]}))
    assert found.to_dict("list") == {
        "text": ["a"],
        "predicted_label": ["old"],
        "predicted_label_2": ["older"],
        "predicted_label_3": ["new"],
        "predicted_score": [0.5],
    }
