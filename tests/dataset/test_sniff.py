import bz2
import gzip
import io
import lzma
import zipfile

import pytest

from pigeonhole.dataset.sniff import delimited, refuse_other_formats
from pigeonhole.errors import DataError


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.csv", "text,label\n")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"", "empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "pointer .* git lfs pull"),
        (b"outs:\n- md5: 1234\n  path: data\n", "pointer .* dvc pull"),
        (b"<!DOCTYPE html><html>404</html>\n", "web page .* column"),
        (b"\n <HTML><body>", "web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "web page"),
        (b'\xef\xbb\xbf{"text": "a"}', "column names; call the file .jsonl"),
        (b'[{"text": "a"}]', "JSON"),
        (b"\xef\xbb\xbfsep=;\r\ntext;label\r\n", "tells Excel .* take it out"),
        (gzip.compress(b"text,label\n", mtime=0), "gzip"),  # its time would be another name for each worker
        (bz2.compress(b"text,label\n"), "bzip2"),
        (lzma.compress(b"text,label\n"), "xz"),
        (_zip(), "zip archive or an Excel workbook"),
        ("text,label\n".encode("utf-16"), "UTF-16"),
        ("text,label\n".encode("utf-32"), "UTF-32"),
        ("text,label\n".encode("utf-16-le"), "UTF-16"),
        ("text,label\n".encode("utf-16-be"), "UTF-16"),
        (b"PAR1\x15\x04", "Parquet file.*call it .parquet"),
    ],
)
def test_other_formats_are_refused_by_name(head: bytes, said: str) -> None:
    with pytest.raises(DataError, match=f"data.csv: .*{said}"):
        refuse_other_formats("data.csv", head, "CSV")


def test_array_in_place_of_json_lines_is_refused() -> None:
    with pytest.raises(DataError, match="array"):
        refuse_other_formats("data.jsonl", b'[{"text": "a"}]', "JSONL")


def test_parquet_must_be_parquet() -> None:
    refuse_other_formats("data.parquet", b"PAR1\x15\x04", "Parquet")
    with pytest.raises(DataError, match="not a Parquet file"):
        refuse_other_formats("data.parquet", b"text,label\n", "Parquet")


@pytest.mark.parametrize("head", [b"text,label\n", b"version,outs\n", b'"{a}",label\n', "téxt,label\n".encode()])
def test_headers_pass(head: bytes) -> None:
    refuse_other_formats("data.csv", head, "CSV")


@pytest.mark.parametrize(
    ("header", "mark"),
    [
        ("text,label\n", ","),
        ("text;label\n", ";"),
        ("text\tlabel\n", "\t"),
        ("text\n", ","),
        ('"Text, Betreff";label\n', ";"),
        ("Name, Vorname;text;label\n", ";"),
        ('text,"a;b;c"\n', ","),
    ],
)
def test_columns_are_divided_by_what_the_header_has_most_of(header: str, mark: str) -> None:
    lines, found = delimited(iter(["\n", header, "a;b;c;d\n"]))
    assert found == mark
    assert list(lines) == ["\n", header, "a;b;c;d\n"]
