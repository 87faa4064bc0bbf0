"""The spool: the lines of one writer on the local disk, in segments `<folder>/<writer>-<sequence>.jsonl`.

A lock file says that the writer lives; the kernel frees it with the process, and any other writer may then adopt its segments.
"""

import contextlib
import hashlib
import itertools
import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout

from pigeonhole import storage
from pigeonhole.errors import LogError, StorageError

logger = logging.getLogger(__name__)

Durability = Literal["none", "process", "host", "remote"]
"""What a record survives once `LogWriter.append` has returned, and how:

none      nothing: what came since the last shipping goes with the process
process   the end of the process by any signal: write(2)
host      a power cut: and fdatasync, one for all records of an append
remote    the loss of the host with its disk: the store has acknowledged it
"""


class SegmentError(LogError):
    """A segment that cannot be read or removed."""


class Appended(NamedTuple):
    """Where lines went, and how many records are there now."""

    segment: Path
    records: int


class Spool:
    """One writer's segments; at most one of them is open. What is not yet written down (`none`) is the writer's business."""

    def __init__(self, folder: Path, durability: Durability = "process") -> None:
        """Raises StorageError where the folder cannot be written."""
        self.folder = folder
        self.writer = secrets.token_hex(8)
        self._sync = durability == "host"
        self._mutex = threading.Lock()
        self._sequence = itertools.count(1)
        self._segment: Path | None = None
        self._handle = -1
        self._segment_bytes = 0
        self._records = 0
        self._total_bytes = 0
        self._strangers: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self._lock_path(self.writer), thread_local=False)
            self._lock.acquire(timeout=5)
        except (OSError, Timeout) as error:
            raise StorageError(f"{folder}: the prediction log cannot be written here ({error}); choose another folder") from error

    def append(self, lines: Sequence[bytes]) -> Appended:
        """Write all lines or none. Raises LogError (a full disk)."""
        data = b"".join(lines)
        with self._mutex:
            try:
                segment = self._write(data)
            except OSError as error:
                self._take_back()
                raise LogError(f"{self.folder}: the prediction log cannot be written: {error.strerror}") from error
            self._segment_bytes += len(data)
            self._total_bytes += len(data)
            self._records += len(lines)
            return Appended(segment, self._records)

    def rotate(self) -> None:
        """Close the open segment, so that it can be shipped."""
        with self._mutex:
            if self._segment is not None:
                self._close_segment()

    def closed_segments(self) -> list[Path]:
        """Of this writer alone, oldest first. Not while an append opens one: it has a name before it is known to be open."""
        with self._mutex:
            return [path for path in sorted(self.folder.glob(f"{self.writer}-*.jsonl")) if path != self._segment]

    @contextlib.contextmanager
    def abandoned_segments(self) -> Iterator[list[Path]]:
        """The segments of writers whose process is gone. Nobody else has them while the context lasts."""
        for path in self.folder.glob("*.lock"):
            _remove_stale_lock(path)
        with contextlib.ExitStack() as locks:
            others = {_writer_of(path) for path in self.folder.glob("*.jsonl")} - {self.writer}
            dead = {writer for writer in others if self._is_dead(writer, locks)}
            yield [path for path in self.all_segments() if _writer_of(path) in dead]

    def _is_dead(self, writer: str, locks: contextlib.ExitStack) -> bool:
        """Whether its lock was free; it is in `locks` from then on. Of one whose lock cannot be tried nobody knows."""
        try:
            return _locked(self._lock_path(writer), locks)
        except OSError as error:
            if writer not in self._strangers:  # once, not at each attempt
                logger.warning("what %s left is not shipped: its lock cannot be tried: %s", writer, error.strerror)
            self._strangers.add(writer)
            return False

    def all_segments(self) -> list[Path]:
        """Of every writer in this folder, the open ones too."""
        return sorted(self.folder.glob("*.jsonl"))

    @property
    def size_bytes(self) -> int:
        """Of every writer in this folder: as `measure` found it, and what this one has written and removed since."""
        return self._total_bytes

    def measure(self) -> None:
        with self._mutex:
            self._total_bytes = sum(map(size_of, self.all_segments()))

    def remove(self, segment: Path) -> None:
        """After it was shipped; one that another process removed is gone already."""
        with self._mutex:
            size_bytes = size_of(segment)
            try:
                segment.unlink(missing_ok=True)
            except OSError as error:
                raise SegmentError(f"{segment}: the segment cannot be removed: {error.strerror}") from error
            self._total_bytes = max(0, self._total_bytes - size_bytes)

    def close(self) -> None:
        self.rotate()
        self._lock.release()
        with contextlib.suppress(OSError):
            self._lock_path(self.writer).unlink(missing_ok=True)

    def _write(self, data: bytes) -> Path:
        segment = self._segment or self._open_segment()
        written = os.write(self._handle, data)
        if written < len(data):
            raise OSError(0, f"{written} of {len(data)} bytes written, the disk is full")
        if self._sync:
            getattr(os, "fdatasync", os.fsync)(self._handle)
        return segment

    def _open_segment(self) -> Path:
        path = self.folder / f"{self.writer}-{next(self._sequence):08d}.jsonl"
        self._handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        self._segment, self._segment_bytes, self._records = path, 0, 0
        if self._sync:
            storage.sync_folder(self.folder)
        return path

    def _close_segment(self) -> None:
        os.close(self._handle)
        self._segment, self._handle = None, -1

    def _take_back(self) -> None:
        """Cut off what a failed write left. A torn end that cannot be cut ends its segment: no whole line follows it."""
        if self._segment is None:
            return
        try:
            os.ftruncate(self._handle, self._segment_bytes)
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


def size_of(segment: Path) -> int:
    """0 where it is gone."""
    try:
        return segment.stat().st_size
    except FileNotFoundError:  # shipped meanwhile
        return 0


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
