"""Tables of people: an uploaded file in, text columns as they stand; a file out that no spreadsheet takes for formulas."""

import csv
import io
import json
import re
from pathlib import PurePath
from typing import IO
from xml.parsers import expat  # it finds no file and asks no host; what entities may unfold is bounded

import pandas as pd

MAX_ROWS = 100_000
MAX_CELLS = 5_000_000  # a short line may name a column that all other rows are then filled up to
MAX_COLUMNS = 16_384  # as in Excel
ELEMENTS = 3  # of XML, for a cell with a text in it
MAX_UNPACKED_BYTES = 512 << 20  # of a workbook: a hundred times as much fits into a small file
KINDS = ("csv", "tsv", "xlsx", "jsonl")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What makes a spreadsheet compute a cell (also in full width, which Excel takes for the same)."""
HALF = re.compile("[\ud800-\udfff]")
INSIDE = re.compile(r"([;\t\r\n][\s\"]*)(?=[=+\-@\uff1d\uff0b\uff0d\uff20])")
"""Where a cell begins for a program that splits at semicolons or tabs: there a quotation mark amid a cell is a letter, so that
neither it nor a line break keeps what follows in the cell."""


class Unreadable(Exception):  # noqa: N818
    """What was uploaded is no table; the text says what is wrong and what is allowed."""


class _TooManyError(ValueError):
    """More cells than a page holds."""


def read_table(name: str, data: bytes) -> pd.DataFrame:
    """Every cell a string ("NA" and "007" stay what they are); raises Unreadable."""
    kind = PurePath(name).suffix.lower().lstrip(".")
    if kind not in KINDS:
        raise Unreadable(f"{name} is none of {', '.join(KINDS)}")
    try:
        table = _read(kind, data)
    except UnicodeDecodeError as error:
        raise Unreadable(f"{name} is not UTF-8: save it as CSV UTF-8") from error
    except RecursionError as error:
        raise Unreadable(f"{name} cannot be read as {kind}: it is nested too deeply") from error
    except (ValueError, KeyError, OSError, csv.Error) as error:
        raise Unreadable(f"{name} cannot be read as {kind}: {str(error).partition(chr(10))[0][:200]}") from error
    if table.empty:
        raise Unreadable(f"{name} has no rows")
    if not table.columns.is_unique:
        raise Unreadable(f"{name} has two columns of the same name: rename one")
    if len(table) > MAX_ROWS:
        raise Unreadable(f"{name} has {len(table):,} rows; at most {MAX_ROWS:,} at a time, so split it")
    return table


def _read(kind: str, data: bytes) -> pd.DataFrame:
    if kind == "xlsx":
        return _cells(_open_excel(data))
    text = data.decode("utf-8-sig")
    if kind == "jsonl":
        lines = (line for line in text.split("\n") if line.strip())  # U+2028 ends no line of JSON
        rows = [json.loads(line, parse_int=str, parse_float=str) for line in lines]  # the digits as they stand
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("a line is not a JSON object")
        _check_cells(len(dict.fromkeys(name for row in rows for name in row)), len(rows))
        return _cells(pd.DataFrame(rows, dtype=object))
    return _delimited(text, "\t" if kind == "tsv" else _separator(text))


def _delimited(text: str, separator: str) -> pd.DataFrame:
    """A row with another number of cells than the header is refused: it would shift the columns in silence."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    body: list[list[str]] = []
    place = "the header"
    try:
        header = next(rows, [])
        place = "row 1"
        for row in filter(None, rows):
            if len(row) != len(header):
                raise ValueError(f"{place} has {len(row)} cells, the header has {len(header)}")
            body.append(row)
            place = f"row {len(body) + 1}"
    except csv.Error as error:
        raise ValueError(f"{place} {_csv_fault(str(error))}") from error
    _check_cells(len(header), len(body))
    return pd.DataFrame(body, columns=header, dtype=object)


def _csv_fault(said: str) -> str:
    """The csv module's words in words that help whoever has the file in a spreadsheet."""
    if "field limit" in said:
        return f"has a cell of more than {csv.field_size_limit():,} characters: shorten it, or close its quotation mark"
    if "end of data" in said:
        return "opens a quotation mark that is never closed"
    if "expected after" in said:
        return "goes on behind a quotation mark that closes a cell: double the marks inside of a cell"
    return f"is no row of such a table ({said})"


def _check_cells(columns: int, rows: int) -> None:
    if columns > MAX_COLUMNS or columns * rows > MAX_CELLS:
        raise _TooManyError(
            f"{rows:,} rows of {columns:,} columns are too many cells: allowed are {MAX_CELLS:,}, and {MAX_COLUMNS:,} columns; "
            "leave out columns, or split it"
        )


def _separator(text: str) -> str:
    """Of the header: a comma, else a semicolon (Excel of half of Europe), else a tab."""
    head = text.split("\n", 1)[0]
    return max(",;\t", key=head.count)


def _open_excel(data: bytes) -> pd.DataFrame:
    import zipfile  # beside openpyxl, which raises what it and the parser raise, and more of its own for what is damaged

    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            size_bytes = sum(part.file_size for part in packed.infolist())  # it unpacks no more than it says here
    except zipfile.BadZipFile as error:
        raise ValueError("it is no Excel workbook") from error
    if size_bytes > MAX_UNPACKED_BYTES:
        raise ValueError(
            f"it unpacks to {size_bytes >> 20} MiB, at most {MAX_UNPACKED_BYTES >> 20} MiB; save it as CSV, or split it"
        )
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for part in packed.infolist():
                with packed.open(part) as stream:
                    _Extent().check(stream)
        return pd.read_excel(io.BytesIO(data), dtype=object, keep_default_na=False, engine="openpyxl", nrows=MAX_ROWS + 1)
    except _TooManyError:
        raise
    except Exception as error:  # SyntaxError, TypeError, zlib.error, …: a workbook may be broken in any place
        raise ValueError("it is no Excel workbook, or a damaged one") from error


class _Extent:
    """How far a part of a workbook reaches: pandas fills up all rows to the longest, openpyxl takes 400 bytes an element."""

    def __init__(self) -> None:
        self._elements = self._elements_of_row = 0
        self._row = self._column = 0  # where a cell stands
        self._rows = self._columns = 0  # to the last cell that has a value

    def check(self, stream: IO[bytes]) -> None:
        """Raises _TooManyError."""
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._begin
        parser.EndElementHandler = self._end
        try:
            parser.ParseFile(stream)
        except (expat.ExpatError, LookupError):
            return  # a picture; of a sheet openpyxl reads no more than this either, and tells it

    def _begin(self, tag: str, attributes: dict[str, str]) -> None:
        self._elements += 1
        self._elements_of_row += self._row > 0
        match tag.rpartition(":")[2], attributes.get("r", ""):
            case "row", number:
                self._row, self._column, self._elements_of_row = _number(number) or self._rows + 1, 0, 0
            case "c", place:
                self._column = _column(place) or self._column + 1
            case "v" | "is", _:
                self._rows, self._columns = max(self._rows, self._row), max(self._columns, self._column)
                _check_cells(self._columns, min(self._rows, MAX_ROWS + 1))
        if self._elements > ELEMENTS * MAX_CELLS or self._elements_of_row > ELEMENTS * MAX_COLUMNS:
            raise _TooManyError(
                f"it has more than {MAX_CELLS:,} cells, or {MAX_COLUMNS:,} in a row; leave out columns, or split it"
            )

    def _end(self, tag: str) -> None:
        if tag.rpartition(":")[2] == "row":
            self._elements_of_row = 0


def _number(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else 0


def _column(place: str) -> int:
    """Of a cell: 28 for AB7."""
    number = 0
    for letter in place.upper().rstrip("0123456789")[:4]:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def _cells(table: pd.DataFrame) -> pd.DataFrame:
    table.columns = [_whole(str(name)) for name in table.columns]
    return table.map(lambda cell: "" if cell is None or cell != cell else _whole(str(cell))).astype(object)


def _whole(text: str) -> str:
    """Without half a character, which JSON may hold and no browser takes."""
    return HALF.sub("\ufffd", text)


def likely_text_column(table: pd.DataFrame) -> str:
    """One named as texts are named, else the one with the longest cells."""
    for name in ("text", "sentence", "utterance", "message", "body"):
        for column in table.columns:
            if str(column).strip().lower() == name:
                return str(column)
    means = {str(column): table[column].head(200).map(len).mean() for column in table.columns}
    return max(means, key=lambda column: means[column])


def beside(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """The first rows of the table, each with its answer; a name that the table has already steps aside: predicted_label_2."""
    names: list[str] = []
    for column in answers.columns:
        name, number = f"predicted_{column}", 1
        while name in table.columns:
            name, number = f"predicted_{column}_{number + 1}", number + 1
        names.append(name)
    return pd.concat([table.iloc[: len(answers)].reset_index(drop=True), answers.set_axis(names, axis=1)], axis=1)


def safe_csv(table: pd.DataFrame) -> bytes:
    """CSV with a byte order mark (Excel needs it for UTF-8) and an apostrophe before all that could be a formula.

    Excel splits a .csv at the separator of its country, a semicolon in half of Europe: `foo;=1+1` would be two cells there.
    """
    guarded = table.map(_guarded)
    guarded.columns = [_guarded(name) for name in table.columns]
    return b"\xef\xbb\xbf" + bytes(guarded.to_csv(index=False, lineterminator="\r\n").encode())


def _guarded(cell: object) -> object:
    if not isinstance(cell, str):
        return cell
    inside = INSIDE.sub(r"\1'", cell)
    return f"'{inside}" if cell.lstrip(' "').startswith(FORMULA) else inside
