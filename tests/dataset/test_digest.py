import hashlib
from pathlib import Path

import pytest

from pigeonhole.dataset import digest
from pigeonhole.dataset.digest import digest_file, normalise, text_key, verify_file
from pigeonhole.errors import DataError, NotFoundError


def test_digest_is_sha256_size_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na,b")
    found = digest_file(str(path))
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(b"text,label\na,b").hexdigest(), 14)
    assert (found.newlines, found.ends_with_newline, found.head) == (1, False, b"text,label\na,b")


def test_digest_of_several_blocks_is_that_of_the_whole_and_its_head_is_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digest, "BLOCK_BYTES", 8)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text\nlabel\na\nb\r")
    found = digest_file(str(path))
    assert (found.sha256, found.size_bytes) == (hashlib.sha256(path.read_bytes()).hexdigest(), 15)
    assert (found.newlines, found.ends_with_newline, found.head) == (3, True, b"text\nlab")


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        digest_file(str(tmp_path / "nowhere.csv"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Where is my card?", "where is  my CARD"),
        ("ﬁne", "FINE"),
        ("Straße", "STRASSE"),
        ("don\u2019t", "don't"),
        ("a\nb", "a b"),
        ("\u0390", "\u03aa\u0301"),  # its capital has no sign of its own, and folds to another spelling
    ],
)
def test_spellings_of_one_text_are_equal(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(("one", "other"), [("👍", "👎"), ("?", "!"), ("c++", "c"), ("10 €", "10 $"), ("ß", "s")])
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def test_key_depends_on_text_and_seed_only() -> None:
    assert text_key(0)("a") == text_key(0)("a")
    assert text_key(0)("a") != text_key(1)("a")
    assert text_key(0)("a") != text_key(0)("b")
    expected = hashlib.blake2b(b"a", digest_size=8, key=(7).to_bytes(4, "little")).digest()
    assert text_key(7)("a") == int.from_bytes(expected, "little")


def test_promised_checksum_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n")
    found = digest_file(str(path))
    verify_file(str(path), found, found.sha256.upper())
    with pytest.raises(DataError, match=r"checksum differs: data\.sha256 promises"):
        verify_file(str(path), found, "0" * 64)
    with pytest.raises(DataError, match="not a checksum"):
        verify_file(str(path), found, "abc")


def test_sidecar_is_compared(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n")
    found = digest_file(str(path))
    sidecar = tmp_path / "a.csv.sha256"
    sidecar.write_text(f"{found.sha256}  a.csv\n")
    verify_file(str(path), found, None)
    sidecar.write_text(f"{'1' * 64}  a.csv\n")
    with pytest.raises(DataError, match=r"checksum differs: .*a\.csv\.sha256 promises"):  # the key does not stand for the file
        verify_file(str(path), found, found.sha256)
    with pytest.raises(DataError, match=r"checksum differs: .*a\.csv\.sha256 promises"):
        verify_file(str(path), found, None)
