"""The spool: the lines of one writer on the local disk, in segments `<folder>/<writer>-<sequence>.jsonl`.

A lock file says that the writer lives; the kernel frees it with the process, and any other writer may then adopt its segments.
"""

import contextlib
import hashlib
import itertools
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from pigeonhole import storage
from pigeonhole.errors import LogError, StorageError

Durability = Literal["process", "host"]
"""What an appended record survives: the end of this process by any signal (write(2)), or of its host (and fdatasync).

Two more names are reserved: `none` (may be lost with the process) and `remote` (acknowledged by the store).
"""


class Spool:
    """One writer's segments; at most one of them is open."""

    def __init__(self, folder: Path, durability: Durability = "process") -> None:
        """Raises StorageError where the folder cannot be written."""
        self.folder = folder
        self.writer = secrets.token_hex(8)
        self._sync = durability == "host"
        self._mutex = threading.Lock()
        self._sequence = itertools.count(1)
        self._segment: Path | None = None
        self._handle = -1
        self._size_bytes = 0
        self._records = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_path(self.writer), thread_local=False)
            self._lock.acquire(timeout=5)
        except (OSError, Timeout) as error:
            raise StorageError(f"{folder}: the prediction log cannot be written here ({error}); choose another folder") from error

    def append(self, lines: Sequence[bytes]) -> int:
        """Write all lines or none, and return how many records the open segment holds. Raises LogError (a full disk)."""
        data = b"".join(lines)
        with self._mutex:
            try:
                self._write(data)
            except OSError as error:
                self._take_back()
                raise LogError(f"{self.folder}: the prediction log cannot be written: {error.strerror}") from error
            self._size_bytes += len(data)
            self._records += len(lines)
            return self._records

    def rotate(self) -> None:
        """Close the open segment, so that it can be shipped."""
        with self._mutex:
            if self._segment is not None:
                self._close_segment()

    def closed_segments(self) -> list[Path]:
        """Of this writer alone, oldest first."""
        return [path for path in sorted(self.folder.glob(f"{self.writer}-*.jsonl")) if path != self._segment]

    @contextlib.contextmanager
    def abandoned_segments(self) -> Iterator[list[Path]]:
        """The segments of writers whose process is gone. Nobody else has them while the context lasts."""
        for path in self.folder.glob("*.lock"):
            _remove_stale_lock(path)
        with contextlib.ExitStack() as locks:
            others = {_writer_of(path) for path in self.folder.glob("*.jsonl")} - {self.writer}
            dead = {writer for writer in others if _locked(self._lock_path(writer), locks)}
            yield [path for path in self.all_segments() if _writer_of(path) in dead]

    def all_segments(self) -> list[Path]:
        """Of every writer in this folder, the open ones too."""
        return sorted(self.folder.glob("*.jsonl"))

    def close(self) -> None:
        self.rotate()
        self._lock.release()
        with contextlib.suppress(OSError):
            self._lock_path(self.writer).unlink(missing_ok=True)

    def _write(self, data: bytes) -> None:
        if self._segment is None:
            self._open_segment()
        written = os.write(self._handle, data)
        if written < len(data):
            raise OSError(0, f"{written} of {len(data)} bytes written, the disk is full")
        if self._sync:
            getattr(os, "fdatasync", os.fsync)(self._handle)

    def _open_segment(self) -> None:
        path = self.folder / f"{self.writer}-{next(self._sequence):08d}.jsonl"
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._segment, self._size_bytes, self._records = path, 0, 0
        if self._sync:
            _sync_folder(self.folder)

    def _close_segment(self) -> None:
        os.close(self._handle)
        self._segment, self._handle = None, -1

    def _take_back(self) -> None:
        """Cut off what a failed write left. A torn end that cannot be cut ends its segment: no whole line follows it."""
        if self._segment is None:
            return
        try:
            os.ftruncate(self._handle, self._size_bytes)
        except OSError:
            self._close_segment()

    def _lock_path(self, writer: str) -> Path:
        return self.folder / f"{writer}.lock"


def spool_folder(url: str, spool: str | None = None) -> Path:
    """Inside a local log, where its readers look too; for a remote one `spool`, or a private temporary folder."""
    local = storage.local_path(url)
    if local is not None:
        return local / "spool"
    if spool:
        return Path(spool)
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows has no user ids, and its temporary folder is the user's own
    private = Path(tempfile.gettempdir()) / f"pigeonhole-{user}"
    private.mkdir(mode=0o700, exist_ok=True)
    if private.stat().st_uid != user:
        raise StorageError(f"{private}: belongs to another user; set PIGEONHOLE_SPOOL to a folder of your own")
    return private / hashlib.sha256(url.encode()).hexdigest()[:16]


def _writer_of(segment: Path) -> str:
    return segment.name.partition("-")[0]


def _locked(path: Path, locks: contextlib.ExitStack) -> bool:
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    locks.callback(lock.release)
    return True


def _remove_stale_lock(path: Path) -> None:
    """A killed process leaves its empty lock file. One of the last hour may belong to a writer that is just about to take it."""
    with contextlib.suppress(OSError, Timeout):
        if time.time() - path.stat().st_mtime > 3600 and not any(path.parent.glob(f"{path.stem}-*.jsonl")):
            with FileLock(path, blocking=False):
                path.unlink()


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows cannot open a folder to sync it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
