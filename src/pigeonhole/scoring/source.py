"""Rows in: files found, read once in full before any work begins (digest, rows, columns), then read again by row ranges.

What a whole file is wrong in raises DataError here. What one row is wrong in makes it a bad row, with its place and reason, and
never stops the reading. Columns are kept as they are: Parquet's with their types, CSV's as strings, JSONL's with the one type
that all their values have (else as JSON text). Memory does not grow with the file.
"""

import contextlib
import csv
import dataclasses
import hashlib
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, Literal, NoReturn

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pigeonhole import storage
from pigeonhole.dataset.sniff import HEAD_BYTES, delimited, format_of, refuse_other_formats, suffix_of
from pigeonhole.errors import NOT_AS_TYPED, DataError

Format = Literal["Parquet", "CSV", "JSONL"]

MARK_ROWS = 1024  # a text file can be entered at every so many rows
MAX_LINE_BYTES = 64 << 20
MAX_FIELD_CHARS = 16 << 20  # a quote that is never closed must not read the rest of the file into memory
BATCH_ROWS = 1024
PAGE_BYTES = 1 << 20  # read of a column at a time; without a bound, pyarrow takes all of a row group at once

TABLES = (".parquet", ".csv", ".tsv", ".jsonl", ".ndjson")  # what is a table below a folder or a glob
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Mark:
    """A record of a text file: its number, the byte and the line (from 1) that it begins at."""

    row: int
    position: int
    line: int


@dataclass(frozen=True)
class InputFile:
    url: str
    sha256: str
    size_bytes: int
    rows: int
    marks: tuple[Mark, ...] = ()
    delimiter: str = ","


@dataclass(frozen=True)
class Source:
    """All of the input. `schema` holds every column, the text's too; `row_bytes` is what a row takes where rows are longest."""

    format: Format
    schema: pa.Schema
    json_columns: frozenset[str]
    files: tuple[InputFile, ...]
    row_bytes: int

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


@dataclass(frozen=True)
class Span:
    """Some rows of one file, `start <= row < stop`; `mark` is the nearest one before them."""

    url: str
    start: int
    stop: int
    mark: Mark
    delimiter: str  # of CSV


@dataclass(frozen=True)
class Wanted:
    """What is read of a row: its text, with a bound, and the column that names it in error files."""

    text: str
    id: str | None
    max_chars: int


class BadRow(msgspec.Struct, frozen=True):
    """A row that cannot be scored: row counts from 1; line is its first line in a text file."""

    file: str
    row: int
    line: int | None
    id: str | None
    reason: str


Place = tuple[str, int, int | None]
"""Url, row and line, as in BadRow."""


@dataclass(frozen=True)
class Rows:
    """Rows of the input: those that can be scored as a table, with a place for each; and the bad ones."""

    table: pa.Table
    text: str
    places: list[Place]
    bad: list[BadRow]

    def texts(self) -> list[str]:
        return [str(text) for text in _strings(self.table.column(self.text))]


def find_files(url: str, output: str = "") -> list[str]:
    """The files of a glob, a folder or a URL, sorted; those below the output are none of the input. Raises DataError."""
    below = f"{storage.to_url(output).rstrip('/')}/" if output else None
    found = [name for name in storage.expand(url) if not (_is_hidden(name, url) or (below and name.startswith(below)))]
    if not found:
        raise DataError(f"input={url}: no file is there; give a file, a folder or a glob such as folder/*.parquet")
    files = found if found == [storage.to_url(url)] else [name for name in found if suffix_of(name) in TABLES]
    if not files:
        raise DataError(f"input={url}: none of the {len(found)} files there ends with {', '.join(TABLES)}; name the file itself")
    formats = {format_of(name) for name in files}
    if len(formats) > 1:
        raise DataError(f"input={url}: files of several formats ({', '.join(sorted(formats))}); score them one format at a time")
    return files


def scan(urls: Sequence[str], wanted: Wanted) -> Source:
    """Read every file once in full. Raises DataError for what is not as one table with the wanted columns, StorageError."""
    format_ = format_of(urls[0])
    with _long_fields():
        source = {"Parquet": _scan_parquet, "CSV": _scan_csv, "JSONL": _scan_jsonl}[format_](urls)
    for key, column in (("text", wanted.text), ("id", wanted.id)):
        if column is not None and column not in source.schema.names:
            found = ", ".join(map(repr, source.schema.names[:20])) or "none"
            raise DataError(f"{urls[0]}: no column {column!r}; found {found}; name the right one with {key}=")
    if format_ == "JSONL":
        source = _with_text(source, wanted.text)
    if format_ == "Parquet":
        _refuse_text_type(urls[0], wanted.text, source.schema.field(wanted.text).type)
    if not source.rows:
        raise DataError(f"{urls[0]}: there are no rows" + (f" in any of the {len(urls)} files" if len(urls) > 1 else ""))
    return source


def read(source: Source, spans: Sequence[Span], wanted: Wanted) -> Rows:
    """The rows of the spans, in order. Raises DataError for a file that can no longer be read, StorageError."""
    with _long_fields():
        parts = [_read_span(source, span, wanted) for span in spans]
    return Rows(
        table=pa.concat_tables([part.table for part in parts]),
        text=wanted.text,
        places=[place for part in parts for place in part.places],
        bad=[bad for part in parts for bad in part.bad],
    )


def problem_of(text: object, max_chars: int) -> str | None:
    """Why a value cannot be scored as a text, or None."""
    if not isinstance(text, str):
        return "null in place of a text" if text is None else f"{type(text).__name__} in place of a text"
    if len(text) > max_chars:
        return f"too long: {len(text):,} characters, at most {max_chars:,}"
    if "\0" in text:
        return "the text holds a NUL character"
    if not _is_unicode(text):
        return "the text is not UTF-8"
    return None if text.strip() else "the text is blank"


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_hidden(name: str, url: str) -> bool:
    """Below a folder or a glob, names with a dot or an underscore in front are a program's notes, not data."""
    root = storage.to_url(url)
    if name == root:
        return False
    folder = root[: root.index("*")].rpartition("/")[0] if "*" in root else root
    return any(part.startswith((".", "_")) for part in name.removeprefix(folder).split("/"))


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """A field that is too long has to be read to be told apart as a bad row; the csv module's own limit is global."""
    before = csv.field_size_limit(MAX_FIELD_CHARS)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[tuple[IO[bytes], str, int]]:
    """The stream of a file that was read once already, with its digest and size."""
    with storage.open_read(url) as stream:
        refuse_other_formats(url, stream.read(HEAD_BYTES), format_of(url))
        stream.seek(0)
        digest = hashlib.sha256()
        size_bytes = 0
        while block := stream.read(1 << 20):
            digest.update(block)
            size_bytes += len(block)
        stream.seek(0)
        yield stream, digest.hexdigest(), size_bytes


def _scan_parquet(urls: Sequence[str]) -> Source:
    files: list[InputFile] = []
    schema: pa.Schema | None = None
    row_bytes = 0
    for url in urls:
        with _opened(url) as (stream, sha256, size_bytes), _explained(url):
            file = pq.ParquetFile(stream, buffer_size=PAGE_BYTES)
            found = file.schema_arrow.remove_metadata()
            schema = schema or found
            _refuse_other_columns(url, found, urls[0], schema)
            rows = 0
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                rows += batch.num_rows
                row_bytes = max(row_bytes, batch.nbytes // max(1, batch.num_rows))
        files.append(InputFile(url, sha256, size_bytes, rows))
    return Source("Parquet", schema, frozenset(), tuple(files), row_bytes)


def _refuse_other_columns(url: str, found: pa.Schema, first: str, expected: pa.Schema) -> None:
    if len(set(found.names)) < len(found.names):
        raise DataError(f"{url}: a column name stands twice; every column needs its own name")
    if found.names != expected.names:
        raise DataError(f"{url}: columns {', '.join(found.names)}; {first} has {', '.join(expected.names)}")
    for field in expected:
        if found.field(field.name).type != field.type:
            raise DataError(
                f"{url}: column {field.name!r} is of type {found.field(field.name).type}, in {first} of type {field.type}"
            )


def _refuse_text_type(url: str, column: str, found: pa.DataType) -> None:
    value = found.value_type if pa.types.is_dictionary(found) else found
    is_text = pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)
    if not (is_text or pa.types.is_integer(value)):
        raise DataError(f"{url}: column {column!r} is of type {found}; strings (or whole numbers) are needed")


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{url}: not a readable Parquet file: {str(error).splitlines()[0]}") from error


def _scan_csv(urls: Sequence[str]) -> Source:
    files: list[InputFile] = []
    header: list[str] = []
    for url in urls:
        with _opened(url) as (stream, sha256, size_bytes):
            start = Mark(0, _after_bom(stream), 1)
            _, delimiter = delimited(_Lines(url, stream, start))
            stream.seek(start.position)
            records = _csv_records(url, stream, start, delimiter)
            found = next(((fields, line) for _, line, fields in records), ([], 1))[0]
            header = header or found
            _refuse_header(url, found, urls[0], header)
            marks, rows = _marks((position, line) for position, line, _ in records)
        files.append(InputFile(url, sha256, size_bytes, rows, marks, delimiter))
    return Source("CSV", pa.schema([(name, pa.string()) for name in header]), frozenset(), tuple(files), _row_bytes(files))


def _refuse_header(url: str, found: list[str], first: str, expected: list[str]) -> None:
    if not found:
        raise DataError(f"{url}: the file is empty (blank lines only)")
    if len(set(found)) < len(found):
        raise DataError(f"{url}: line 1: a column name stands twice in the header; every column needs its own name")
    if not all(map(_is_unicode, found)):
        raise DataError(f"{url}: line 1: the header is not UTF-8; save the file as UTF-8")
    if found != expected:
        raise DataError(f"{url}: columns {', '.join(found)}; {first} has {', '.join(expected)}")


def _after_bom(stream: IO[bytes]) -> int:
    start = len(_BOM) if stream.read(len(_BOM)) == _BOM else 0
    stream.seek(start)
    return start


def _marks(records: Iterator[tuple[int, int]]) -> tuple[tuple[Mark, ...], int]:
    """A mark at every MARK_ROWS-th record, and how many records there are."""
    marks: list[Mark] = []
    rows = 0
    for position, line in records:
        if rows % MARK_ROWS == 0:
            marks.append(Mark(rows, position, line))
        rows += 1
    return tuple(marks), rows


def _row_bytes(files: Sequence[InputFile]) -> int:
    """Of the mean row between two marks, where that is largest."""
    found = 0
    for file in files:
        ends = [*((mark.row, mark.position) for mark in file.marks[1:]), (file.rows, file.size_bytes)]
        spans = zip(file.marks, ends, strict=True) if file.rows else ()
        found = max([found, *((position - mark.position) // (row - mark.row) for mark, (row, position) in spans)])
    return found


_LINE = re.compile(rb"[^\r\n]*(?:\r\n|\n|\r)|[^\r\n]+")


class _Lines:
    """Decoded physical lines, which end with LF, CRLF or CR; `position` and `line` are the next one's.

    Bytes that are not UTF-8 become lone surrogates.
    """

    def __init__(self, url: str, stream: IO[bytes], mark: Mark) -> None:
        self.position = mark.position
        self.line = mark.line
        self._url = url
        self._stream = stream
        self._ahead: deque[bytes] = deque()  # what CR divides

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        return self.raw().decode("utf-8", "surrogateescape")

    def raw(self) -> bytes:
        if not self._ahead:
            block = self._stream.readline(MAX_LINE_BYTES)
            if len(block) == MAX_LINE_BYTES:
                _refuse_line(self._url, self.line, f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
            self._ahead.extend(_LINE.findall(block))
        if not self._ahead:
            raise StopIteration
        data = self._ahead.popleft()
        self.position += len(data)
        self.line += 1
        return data


def _csv_records(url: str, stream: IO[bytes], mark: Mark, delimiter: str) -> Iterator[tuple[int, int, list[str]]]:
    """Position, line and fields of each record from the mark on; a blank line holds none."""
    lines = _Lines(url, stream, mark)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        position, line = lines.position, lines.line
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            _refuse_line(url, line, f"not CSV: {error}; is a quote opened and not closed, or not doubled inside quotes?")
        if fields:
            yield position, line, fields


def _jsonl_records(url: str, stream: IO[bytes], mark: Mark) -> Iterator[tuple[int, int, dict[str, Any] | str]]:
    """Position, line and object of each line from the mark on (or what is wrong with it); a blank line holds none."""
    lines = _Lines(url, stream, mark)
    while True:
        position, line = lines.position, lines.line
        try:
            raw = lines.raw()
        except StopIteration:
            return
        if raw.strip():
            yield position, line, _json_object(raw)


def _json_object(raw: bytes) -> dict[str, Any] | str:
    try:
        value = msgspec.json.decode(raw)
    except NOT_AS_TYPED:
        return "not a JSON object in UTF-8"
    return value if isinstance(value, dict) else f"a JSON {type(value).__name__} in place of an object"


def _scan_jsonl(urls: Sequence[str]) -> Source:
    files: list[InputFile] = []
    kinds: dict[str, set[type]] = {}
    for url in urls:
        with _opened(url) as (stream, sha256, size_bytes):
            records = _jsonl_records(url, stream, Mark(0, _after_bom(stream), 1))
            marks, rows = _marks(_noting(url, records, kinds))
        files.append(InputFile(url, sha256, size_bytes, rows, marks))
    types = {name: _arrow_type(found) for name, found in kinds.items()}
    schema = pa.schema([(name, found or pa.string()) for name, found in types.items()])
    json_columns = frozenset(name for name, found in types.items() if found is None)
    return Source("JSONL", schema, json_columns, tuple(files), _row_bytes(files))


def _noting(
    url: str, records: Iterator[tuple[int, int, dict[str, Any] | str]], kinds: dict[str, set[type]]
) -> Iterator[tuple[int, int]]:
    """The records' places; on the way, which types the values of each key have."""
    for number, (position, line, record) in enumerate(records):
        if isinstance(record, dict):
            for name, value in record.items():
                kinds.setdefault(name, set()).add(_kind(value))
        elif number == 0:
            _refuse_line(url, line, f"{record}; one object a line is needed, with the columns as its keys")
        yield position, line


def _kind(value: object) -> type:
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) <= 1 << 53:
        return type(value)
    return _Long if abs(value) < 1 << 63 else object


class _Long(int):
    """A whole number that a double cannot hold."""


def _with_text(source: Source, column: str) -> Source:
    """Values of the text's column that are no text belong to bad rows, and do not decide on its type."""
    schema = source.schema.set(source.schema.get_field_index(column), pa.field(column, pa.string()))
    return dataclasses.replace(source, schema=schema, json_columns=source.json_columns - {column})


def _arrow_type(kinds: set[type]) -> pa.DataType | None:
    """None where the values have no type in common: they are kept as JSON text."""
    found = kinds - {type(None)}
    if found <= {str}:
        return pa.string()
    if found == {bool}:
        return pa.bool_()
    if found <= {int, _Long}:
        return pa.int64()
    return pa.float64() if found <= {int, float} else None


def _read_span(source: Source, span: Span, wanted: Wanted) -> Rows:
    with storage.open_read(span.url) as stream:
        if source.format == "Parquet":
            return _read_parquet(source, stream, span, wanted)
        stream.seek(span.mark.position)
        if source.format == "CSV":
            csv_records = _csv_records(span.url, stream, span.mark, span.delimiter)
            records = ((line, _csv_row(source.schema.names, fields)) for _, line, fields in csv_records)
        else:
            records = ((line, record) for _, line, record in _jsonl_records(span.url, stream, span.mark))
        return _sorted_out(source, span, wanted, records)


def _csv_row(header: list[str], fields: list[str]) -> dict[str, Any] | str:
    if len(fields) != len(header):
        return f"{len(fields)} fields, the header has {len(header)}"
    broken = [name for name, value in zip(header, fields, strict=True) if not value.isascii() and not _is_unicode(value)]
    return f"column {broken[0]!r} is not UTF-8" if broken else dict(zip(header, fields, strict=True))


def _sorted_out(source: Source, span: Span, wanted: Wanted, records: Iterator[tuple[int, dict[str, Any] | str]]) -> Rows:
    """Rows of a text file, the good ones and the bad."""
    good: list[dict[str, Any]] = []
    places: list[Place] = []
    bad: list[BadRow] = []
    for number, (line, record) in enumerate(records, span.mark.row):
        if number == span.stop:
            break
        if number < span.start:
            continue
        if isinstance(record, str):
            bad.append(BadRow(span.url, number + 1, line, None, record))
            continue
        text = _digits(record.get(wanted.text))
        problem = problem_of(text, wanted.max_chars)
        if problem:
            bad.append(BadRow(span.url, number + 1, line, _name(record, wanted.id), problem))
        else:
            good.append(record | {wanted.text: text})
            places.append((span.url, number + 1, line))
    if len(good) + len(bad) < span.stop - span.start:
        raise DataError(f"{span.url}: has fewer rows than when the job began; put the file back as it was")
    columns = [pa.array([_kept(row.get(field.name), field.name, source) for row in good], field.type) for field in source.schema]
    table = pa.Table.from_arrays(columns, schema=source.schema)
    return Rows(table, wanted.text, places, bad)


def _digits(value: object) -> object:
    """The reading policy: a whole number is taken as its digits."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _kept(value: Any, name: str, source: Source) -> Any:
    if name in source.json_columns and value is not None:
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return value


def _name(record: dict[str, Any], column: str | None) -> str | None:
    value = record.get(column) if column else None
    return None if value is None else str(value)


def _read_parquet(source: Source, stream: IO[bytes], span: Span, wanted: Wanted) -> Rows:
    with _explained(span.url):
        file = pq.ParquetFile(stream, buffer_size=PAGE_BYTES)
        table = pa.Table.from_batches(_row_range(file, span), schema=source.schema)
    if table.num_rows < span.stop - span.start:
        raise DataError(f"{span.url}: has fewer rows than when the job began; put the file back as it was")
    broken = _broken_rows(table)
    good: list[int] = []
    bad: list[BadRow] = []
    for number, text in enumerate(_strings(table.column(wanted.text))):
        problem = problem_of(text, wanted.max_chars) or broken.get(number)
        if problem:
            name = _shown(table.column(wanted.id)[number]) if wanted.id else None
            bad.append(BadRow(span.url, span.start + number + 1, None, name, problem))
        else:
            good.append(number)
    places: list[Place] = [(span.url, span.start + number + 1, None) for number in good]
    return Rows(table.take(pa.array(good, pa.int64())) if bad else table, wanted.text, places, bad)


def _broken_rows(table: pa.Table) -> dict[int, str]:
    """Arrow takes any bytes for a string when it reads them. Which rows hold such, and in which column."""
    try:
        table.validate(full=True)
    except pa.ArrowInvalid:
        return {
            number: f"column {name!r} is not UTF-8"
            for name in table.schema.names
            for number, value in enumerate(table.column(name))
            if not _is_readable(value)
        }
    return {}


def _shown(value: pa.Scalar) -> str | None:
    """None also for what Python cannot show: bytes that are no UTF-8, a time with nanoseconds."""
    try:
        found = value.as_py()
    except (ValueError, OverflowError):
        return None
    return None if found is None else str(found)


def _is_readable(value: pa.Scalar) -> bool:
    try:
        value.as_py()
    except UnicodeDecodeError:
        return False
    except (ValueError, OverflowError):
        return True  # a time that Python has no type for
    return True


def _row_range(file: pq.ParquetFile, span: Span) -> Iterator[pa.RecordBatch]:
    first = 0
    for group in range(file.num_row_groups):
        stop = first + file.metadata.row_group(group).num_rows
        if first < span.stop and span.start < stop:
            row = first
            for batch in file.iter_batches(batch_size=BATCH_ROWS, row_groups=[group]):
                begin, end = max(span.start - row, 0), min(span.stop - row, batch.num_rows)
                if begin < end:
                    yield batch.slice(begin, end - begin).replace_schema_metadata(None)
                row += batch.num_rows
                if row >= span.stop:
                    break
        first = stop


def _strings(column: pa.ChunkedArray) -> list[str | None]:
    """Values that are not UTF-8 come out with lone surrogates, for `problem_of` to find."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type):
        return [None if value is None else str(value) for value in column.to_pylist()]
    raw = column.cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]


def _refuse_line(url: str, line: int, problem: str) -> NoReturn:
    raise DataError(f"{url}: line {line}: {problem}")
