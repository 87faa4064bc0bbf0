"""Rows of text and label from CSV, JSON Lines, Parquet or the Hugging Face hub, streamed under one strict policy.

Promises: UTF-8 only (a BOM is allowed); between the columns of a CSV stand commas, semicolons or tabs, whichever its header has
most of; every value is a string as it stands in the file ("NA" and "null" are texts), every row has as many fields as the header,
no row is without text and label; a message names the line (physical lines, the header is line 1), and never shows a text. Memory
does not grow with the file.

With data.task=multi_label a row may have any number of labels, also none: a list, or a string with data.label_separator between.
"""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from typing import IO, Any, NoReturn

from pigeonhole import storage
from pigeonhole.dataset import hub
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.label_sets import SEPARATOR, join_labels
from pigeonhole.dataset.sniff import DELIMITERS, HEAD_BYTES, delimited, format_of, refuse_other_formats
from pigeonhole.errors import DataError

TEXT_COLUMNS = ("text", "sentence", "utterance")
LABEL_COLUMNS = ("label", "category", "intent")
MAX_TEXT_CHARS = 100_000  # below the csv module's own limit of 131,072; a tokenizer needs seconds for more
MAX_LABEL_CHARS = 256
MAX_LINE_CHARS = 1_000_000
_BLOCK_BYTES = 1 << 16

Values = tuple[str, str | Sequence[str], int]  # text, label or labels, line


@dataclass(frozen=True, slots=True)
class Row:
    text: str
    label: str  # of several labels: all of them, as label_sets.join_labels has it
    line: int  # where the row begins; for Parquet and the hub its number, from 1


@dataclass(frozen=True)
class Columns:
    """The wanted columns: a name that must be there, or None for the first of the usual names."""

    text: str | None
    label: str | None
    several: bool = False  # a label may be a list

    def find(self, url: str, found: Sequence[str]) -> tuple[str, str]:
        text = _find_column(url, "text", self.text, TEXT_COLUMNS, found)
        label = _find_column(url, "label", self.label, LABEL_COLUMNS, found)
        if text == label:
            raise DataError(f"{url}: data.text and data.label both name the column {shown(text)}; they need two columns")
        return text, label


def read_rows(config: DataConfig, path: str | None = None) -> Iterator[Row]:
    """The rows of `data.path`, or of another file with the same columns. Raises DataError, NotFoundError, StorageError."""
    url = path or config.path
    several = config.task == "multi_label"
    columns = Columns(config.text, config.label, several)
    read = _hub_values if hub.is_hub(url) else _READERS[format_of(url)]
    values = read(url, columns)
    for text, label, line in values:
        if is_blank(text):
            _refuse_blank(url, "text", line, (at for other, _, at in values if is_blank(other)))
        _refuse_long(url, text, line)
        if several:
            yield Row(text, _label_set(url, label, config.label_separator, line), line)
            continue
        assert isinstance(label, str)
        if is_blank(label):
            _refuse_blank(url, "label", line, (at for _, other, at in values if isinstance(other, str) and is_blank(other)))
        _refuse_label(url, label, line)
        yield Row(text, label, line)


def _csv_values(url: str, columns: Columns) -> Iterator[Values]:
    with storage.open_read(url) as stream:
        head = stream.read(HEAD_BYTES)
        refuse_other_formats(url, head, "CSV")
        lines, delimiter = delimited(_lines(url, stream, head))
        records = _records(url, lines, delimiter)
        header_line, header = next(((line, fields) for line, fields in records if fields), (1, []))
        text, label = _columns_of_header(url, header_line, header, columns)
        for line, fields in records:
            if not fields:  # a blank line holds no row
                continue
            if len(fields) != len(header):
                mark = DELIMITERS[delimiter]
                problem = f"{_count(len(fields), 'field')}, the header has {len(header)}; quote fields with {mark} in them"
                if len(fields) < len(header) and _is_last(records):
                    problem = f"{problem} (this is the last row: if the file is cut off, its checksum differs from the source's)"
                _refuse_line(url, line, problem)
            yield fields[text], fields[label], line


def _records(url: str, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each record of a CSV file and the line that it begins on."""
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    try:
        for fields in reader:
            yield line, fields
            line = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            _refuse_line(
                url, line, f"a field is too long (over {MAX_TEXT_CHARS:,} characters), or a quote is opened and not closed"
            )
        if "end of data" in str(error):
            _refuse_line(
                url, line, "a quote is opened and not closed until the end of the file; close it, or is the file cut off?"
            )
        _refuse_line(url, line, "text follows a closing quote; write a quote inside a quoted field twice")


def _is_last(records: Iterator[tuple[int, list[str]]]) -> bool:
    try:
        return next(records, None) is None
    except DataError:
        return False


def _columns_of_header(url: str, line: int, header: list[str], columns: Columns) -> tuple[int, int]:
    if not header:
        raise DataError(f"{url}: the file is empty (blank lines only)")
    twice = sorted(name for name, times in Counter(header).items() if times > 1)  # of half a million columns, too
    if twice:
        _refuse_line(url, line, f"duplicate column {shown(twice[0])} in the header; every column needs its own name")
    if len(header) == 1 and "|" in header[0]:
        _refuse_line(url, line, "a single column that holds bars; save the file as CSV with commas between the columns")
    text, label = columns.find(url, header)
    return header.index(text), header.index(label)


def _lines(url: str, stream: IO[bytes], head: bytes) -> Iterator[str]:
    """Decoded physical lines with their ends, whatever these are: LF, CRLF or CR."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")("strict")
    line, pending, block = 1, "", head
    while block:
        try:
            pending += decoder.decode(block)
        except UnicodeDecodeError as error:
            _refuse_encoding(url, line + pending.count("\n") + error.object[: error.start].count(b"\n"), error)
        *complete, pending = _LINE.findall(pending) or [""]
        if pending.endswith("\n"):
            complete.append(pending)
            pending = ""
        for text in complete:
            if "\0" in text:
                _refuse_line(url, line, "a NUL byte; save the file as UTF-8 text")
            yield text
            line += 1
        if len(pending) > MAX_LINE_CHARS:
            _refuse_line(url, line, f"the line is too long (over {MAX_LINE_CHARS:,} characters)")
        block = stream.read(_BLOCK_BYTES)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        _refuse_encoding(url, line, error)
    if "\0" in pending:
        _refuse_line(url, line, "a NUL byte; save the file as UTF-8 text")
    if pending:
        yield pending


_LINE = re.compile(r"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")


def _jsonl_values(url: str, columns: Columns) -> Iterator[Values]:
    with storage.open_read(url) as stream:
        head = stream.read(HEAD_BYTES)
        refuse_other_formats(url, head, "JSONL")
        text = label = ""
        for line, raw in enumerate(_lines(url, stream, head), 1):
            if not raw.strip():
                continue
            record = _json_object(url, raw, line)
            if not text:
                text, label = columns.find(url, list(record))
            yield _record_values(url, record, text, label, columns, line)


def _record_values(url: str, record: dict[str, Any], text: str, label: str, columns: Columns, line: int) -> Values:
    found = record.get(label)
    if columns.several and isinstance(found, list):
        labels = [_json_string(url, f"an item of {shown(label)}", item, line) for item in found]
        return _json_value(url, record, text, line), labels, line
    return _json_value(url, record, text, line), _json_value(url, record, label, line), line


def _json_object(url: str, raw: str, line: int) -> dict[str, Any]:
    try:
        record = _DECODER.decode(raw)
    except json.JSONDecodeError:
        _refuse_line(url, line, "not JSON (cut off?); one object per line is needed")
    except RecursionError:
        _refuse_line(url, line, "JSON that is nested too deeply; a text and a label are needed, each a string")
    except ValueError as error:
        _refuse_line(url, line, str(error).partition("; use sys.")[0])  # of a number with too many digits, for programmers
    if not isinstance(record, dict):
        _refuse_line(url, line, f"a JSON {type(record).__name__}; one object per line is needed, with the columns as its keys")
    return record


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        raise ValueError("a duplicate key in a JSON object; every key once")
    return record


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON; leave the key out or write a string")


_DECODER = json.JSONDecoder(object_pairs_hook=_object_without_duplicates, parse_constant=_no_constant)


def _json_value(url: str, record: dict[str, Any], column: str, line: int) -> str:
    if column not in record:
        _refuse_line(url, line, f"no column {shown(column)}; found {listed(list(record))}")
    return _json_string(url, f"column {shown(column)}", record[column], line)


def _json_string(url: str, place: str, value: object, line: int) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        kind = "null" if value is None else type(value).__name__
        _refuse_line(url, line, f"{place} is {kind}; a string is needed (a whole number is taken as its digits)")
    if not value.isascii() and _SURROGATE.search(value):
        _refuse_line(url, line, f"{place} holds half of a surrogate pair, which is no Unicode text")
    return value


_SURROGATE = re.compile("[\ud800-\udfff]")


def _parquet_values(url: str, columns: Columns) -> Iterator[Values]:
    import pyarrow as pa  # 0.2 s that readers of CSV do not pay
    import pyarrow.parquet

    with storage.open_read(url) as stream:
        refuse_other_formats(url, stream.read(HEAD_BYTES), "Parquet")
        try:
            file = pyarrow.parquet.ParquetFile(stream)
            names = file.schema_arrow.names
            text, label = columns.find(url, names)
            for name in (text, label):
                if names.count(name) > 1:
                    raise DataError(f"{url}: duplicate column {shown(name)}; every column needs its own name")
            for name in (text, label):
                _refuse_arrow_type(url, name, file.schema_arrow.field(name).type, lists=columns.several and name == label)
            row = 0
            for batch in file.iter_batches(batch_size=4096, columns=[text, label]):
                _refuse_broken_strings(url, batch, row)
                for values in zip(*(_arrow_values(batch.column(name)) for name in (text, label)), strict=True):
                    row += 1
                    if None in values or (isinstance(values[1], list) and None in values[1]):
                        name = text if values[0] is None else label
                        _refuse_line(url, row, f"column {shown(name)} is null; a string is needed")
                    yield *values, row
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{url}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _refuse_broken_strings(url: str, batch: Any, row: int) -> None:
    """Arrow takes any bytes for a string when it reads them."""
    import pyarrow as pa

    try:
        batch.validate(full=True)
    except pa.ArrowInvalid:
        for place, column in product(range(batch.num_rows), batch.column_names):
            try:
                batch.column(column)[place].as_py()
            except UnicodeDecodeError:
                _refuse_line(url, row + place + 1, f"column {shown(column)} is not UTF-8; write the file from strings again")
        raise


def _refuse_arrow_type(url: str, column: str, found: Any, *, lists: bool) -> None:
    import pyarrow.types as types

    if lists and (types.is_list(found) or types.is_large_list(found)):
        found = found.value_type
    value = found.value_type if types.is_dictionary(found) else found
    if not (types.is_string(value) or types.is_large_string(value) or types.is_string_view(value) or types.is_integer(value)):
        raise DataError(f"{url}: column {shown(column)} is of type {found}; strings or whole numbers are needed")


def _arrow_values(column: Any) -> list[Any]:
    """Strings, or lists of them; None where there is nothing."""
    import pyarrow as pa
    import pyarrow.types as types

    several = types.is_list(column.type) or types.is_large_list(column.type)
    return list(column.cast(pa.list_(pa.string()) if several else pa.string()).to_pylist())


def _hub_values(url: str, columns: Columns) -> Iterator[Values]:
    for row, (names, record) in enumerate(hub.records(url), 1):
        text, label = columns.find(url, names)
        yield _record_values(url, record, text, label, columns, row)


_READERS: dict[str, Callable[[str, Columns], Iterator[Values]]] = {
    "CSV": _csv_values,
    "JSONL": _jsonl_values,
    "Parquet": _parquet_values,
}


def _label_set(url: str, found: str | Sequence[str], separator: str, line: int) -> str:
    """Spaces around the separator mean nothing; a blank field is no label."""
    given = found.split(separator) if isinstance(found, str) else found
    labels = [] if isinstance(found, str) and is_blank(found) else [label.strip() for label in given]
    for label in labels:
        _refuse_label(url, label, line)
        if SEPARATOR in label:
            _refuse_line(url, line, f"the label {shown(label)} holds {SEPARATOR!r}, which is for between labels")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        _refuse_line(url, line, f"the label {shown(twice)} stands twice; write it once")
    return join_labels(labels)


def _refuse_blank(url: str, what: str, line: int, others: Iterator[int]) -> NoReturn:
    """Names more rows like this one, so that nobody has to come back for each."""
    lines = list(islice(others, 4))
    count = len(lines) + sum(1 for _ in others)
    more = f" (and {_count(count, 'more row')}: line {', '.join(map(str, lines))}{', …' if count > 4 else ''})" if count else ""
    _refuse_line(url, line, f"the {what} is empty{more}; remove the row or fill it in")


def _refuse_long(url: str, text: str, line: int) -> None:
    if len(text) > MAX_TEXT_CHARS:
        _refuse_line(url, line, f"the text is too long: {len(text):,} characters, at most {MAX_TEXT_CHARS:,}")


def _refuse_label(url: str, label: str, line: int) -> None:
    if is_blank(label):
        _refuse_line(url, line, "the label is empty; remove the row or fill it in")
    if len(label) > MAX_LABEL_CHARS:
        _refuse_line(
            url, line, f"the label is too long: {len(label):,} characters, at most {MAX_LABEL_CHARS}; are the columns swapped?"
        )


def is_blank(text: str) -> bool:
    """White space, zero-width and control characters show nothing to a reader."""
    stripped = text.strip()
    return not stripped or (
        not stripped[0].isprintable() and not any(letter.isprintable() and letter != " " for letter in stripped)
    )


def _find_column(url: str, key: str, wanted: str | None, usual: tuple[str, ...], found: Sequence[str]) -> str:
    for name in (wanted,) if wanted is not None else usual:
        if name in found:
            return name
    expected = shown(wanted) if wanted is not None else " or ".join(shown(name) for name in usual)
    near = [
        name for name in found if name.strip().casefold() in ({wanted.strip().casefold()} if wanted is not None else set(usual))
    ]
    hint = f"did you mean data.{key}={near[0]}?" if near else f"name the right one with data.{key}="
    if near and near[0] != near[0].strip():
        hint = f"take the spaces around {shown(near[0])} out of the header"
    raise DataError(f"{url}: no column {expected} for the {key}; found the columns {listed(found)}; {hint}")


def listed(names: Sequence[str]) -> str:
    return some_of([shown(name) for name in names], 10) or "none"


def some_of(items: Sequence[str], most: int = 5) -> str:
    """For a message that would else be as long as there are items."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def shown(name: str) -> str:
    """A column or label for a message: quoted, escaped, on one line, short."""
    return repr(name if len(name) <= 40 else name[:39] + "…")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _refuse_encoding(url: str, line: int, error: UnicodeDecodeError) -> NoReturn:
    _refuse_line(
        url, line, f"byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8 (iconv -f cp1252 -t utf-8)"
    )


def _refuse_line(url: str, line: int, problem: str) -> NoReturn:
    raise DataError(f"{url}: line {line}: {problem}")
