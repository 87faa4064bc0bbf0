"""What identifies data: the sha256 of a file, and the 8-byte key of a text that is the same for every way to write it."""

import hashlib
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from pigeonhole import storage
from pigeonhole.errors import DataError

BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    sha256: str
    size_bytes: int
    newlines: int
    ends_with_newline: bool
    head: bytes  # the first 1,024 bytes


def digest_file(url: str) -> FileDigest:
    """Read a file once, in blocks. Raises NotFoundError, StorageError."""
    sha256, size_bytes, newlines, head, last = hashlib.sha256(), 0, 0, b"", b""
    with storage.open_read(url) as stream:
        while block := stream.read(BLOCK_BYTES):
            sha256.update(block)
            size_bytes += len(block)
            newlines += block.count(b"\n")
            head, last = head or block[:1024], block[-1:]
    return FileDigest(sha256.hexdigest(), size_bytes, newlines, last in (b"\n", b"\r"), head)


def verify_file(url: str, found: FileDigest, sha256: str | None, key: str = "data.sha256") -> None:
    """Compare a file with the sha256 that the configuration or `FILE.sha256` beside it promises. Raises DataError."""
    sidecar = f"{url}.sha256"
    promises = {key: sha256} if sha256 else {}
    if storage.exists(sidecar):
        promises[sidecar] = storage.read(sidecar).decode("ascii", "replace").split(" ")[0]
    for source, promised in promises.items():
        wanted = promised.strip().lower()
        if not re.fullmatch(r"[0-9a-f]{64}", wanted):
            raise DataError(f"{source}: not a checksum; expected a sha256, 64 hexadecimal digits")
        if wanted != found.sha256:
            raise DataError(
                f"{url}: the checksum differs: {source} promises sha256 {wanted}, the file has {found.sha256}; "
                "fetch the file again, or give the sha256 of the one you mean"
            )


def normalise(text: str) -> str:
    """One spelling for texts that a reader would call the same: NFKC, case, white space and punctuation folded."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = text.lower().translate(_PUNCTUATION_TO_SPACE).split()
    return " ".join(words or text.split())


class _PunctuationToSpace(dict[int, int]):
    """A table for str.translate that learns each character when it meets it; symbols and emoji are no punctuation."""

    def __missing__(self, character: int) -> int:
        self[character] = ord(" ") if unicodedata.category(chr(character)).startswith("P") else character
        return self[character]


_PUNCTUATION_TO_SPACE = _PunctuationToSpace()


def text_key(seed: int) -> Callable[[str], int]:
    """A function from a *normalised* text to 8 bytes that look random and depend on the seed only; equal texts, equal keys."""
    salted = hashlib.blake2b(digest_size=8, key=seed.to_bytes(4, "little"))

    def key(text: str) -> int:
        state = salted.copy()
        state.update(text.encode())
        return int.from_bytes(state.digest(), "little")

    return key
