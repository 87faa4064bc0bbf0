"""What a file is, by its name and really: a pointer, a web page, an archive, data of another format; what divides its columns."""

import re
from collections.abc import Iterator
from itertools import chain

from pigeonhole.errors import DataError

HEAD_BYTES = 1024

_MAGIC = {
    b"\x1f\x8b": ("a gzip archive", "unpack it first (gunzip)"),
    b"PK\x03\x04": ("a zip archive or an Excel workbook", "unpack it, or save the sheet as CSV UTF-8"),
    b"BZh": ("a bzip2 archive", "unpack it first (bunzip2)"),
    b"\xfd7zXZ\x00": ("an xz archive", "unpack it first (unxz)"),
    b"\x28\xb5\x2f\xfd": ("a zstd archive", "unpack it first (unzstd)"),
    b"\xd0\xcf\x11\xe0": ("an old Excel workbook", "save the sheet as CSV UTF-8"),
    b"PAR1": ("a Parquet file", "call it .parquet"),
    b"ARROW1": ("an Arrow file", "save it as Parquet"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"%PDF": ("a PDF document", "rows of text and label are needed"),
    b"\xff\xfe\0\0": ("UTF-32 text", "save it as UTF-8"),
    b"\xff\xfe": ("UTF-16 text", "save it as UTF-8"),
    b"\xfe\xff": ("UTF-16 text", "save it as UTF-8"),
}
_SUFFIXES = {".jsonl": "JSONL", ".ndjson": "JSONL", ".json": "JSONL", ".parquet": "Parquet"}
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_QUOTED = re.compile(r'"[^"]*"')
_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<error")


def format_of(url: str) -> str:
    """By the ending of the name; what is not JSONL or Parquet has to be CSV."""
    return _SUFFIXES.get(suffix_of(url), "CSV")


def suffix_of(url: str) -> str:
    """In small letters, with its dot; nothing where the name has none."""
    dot = url.rfind(".")
    return url[dot:].lower() if dot > url.rfind("/") else ""


def delimited(lines: Iterator[str]) -> tuple[Iterator[str], str]:
    """The same lines, and what stands between their columns: spreadsheets of half of Europe write semicolons."""
    passed = []
    for line in lines:
        passed.append(line)
        if line.strip():
            break
    header = _QUOTED.sub("", passed[-1]) if passed else ""
    return chain(passed, lines), max(DELIMITERS, key=header.count)


def refuse_other_formats(url: str, head: bytes, wanted: str) -> None:
    """Raise DataError where the first bytes show that this is not the `wanted` format (CSV, JSONL or Parquet)."""
    if not head:
        raise DataError(f"{url}: the file is empty (0 bytes)")
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise DataError(f"{url}: a git-lfs pointer stands in place of the data; fetch them with: git lfs pull")
    if head.startswith((b"outs:", b"md5:")) and b"md5" in head:
        raise DataError(f"{url}: a DVC pointer stands in place of the data; fetch them with: dvc pull")
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.lower().startswith(_PAGES):
        raise DataError(f"{url}: a web page stands in place of the data, so there is no column to read; download the file itself")
    if wanted == "CSV" and start[:4].lower() == b"sep=":
        raise DataError(f"{url}: the first line tells Excel what divides the columns (sep=); take it out, the next is the header")
    if wanted == "CSV" and start.startswith((b"{", b"[{", b"[\n")):
        raise DataError(f"{url}: JSON stands in place of a header with column names; call the file .jsonl (one object per line)")
    if wanted == "JSONL" and start.startswith(b"["):
        raise DataError(
            f"{url}: one JSON array stands in place of JSON Lines; write one object per line, without commas between them"
        )
    for magic, (name, advice) in _MAGIC.items():
        if head.startswith(magic) and (magic, wanted) != (b"PAR1", "Parquet"):
            raise DataError(f"{url}: this is {name}, {wanted} in UTF-8 is needed; {advice}")
    if wanted != "Parquet" and head[:2].count(0) == 1:
        raise DataError(f"{url}: this is UTF-16 text without a mark at its begin, {wanted} in UTF-8 is needed; save it as UTF-8")
    if wanted == "Parquet" and not head.startswith(b"PAR1"):
        raise DataError(f"{url}: this is not a Parquet file: it does not begin with PAR1")
