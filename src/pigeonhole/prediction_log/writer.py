"""The door for writing: `append` returns when records are as safe as promised; a shipper thread moves them on to the store.

A segment becomes one gzip object per hour of its records, create-only under a name that follows from the segment, and is deleted
after that. Whatever goes wrong on the way, the segment is still there and is shipped again, to the same names.
"""

import contextlib
import hashlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from isal import igzip

from pigeonhole import storage
from pigeonhole.errors import LogError
from pigeonhole.prediction_log.record import Feedback, Kind, Record, encode_line, partition_of, read_head
from pigeonhole.prediction_log.spool import Durability, SegmentError, Spool, spool_folder

MAX_BACKOFF_S = 5.0  # a cloud client has tried for half a minute by itself before a failure comes here
MOST_DOUBLINGS = 16  # of the pause: an outage may last for days, and no float holds 2**1024
ADOPT_EVERY_S = 30.0
MAX_SPOOL_BYTES = 1 << 30

WhenFull = Literal["shed", "drop"]
"""What happens to records that there is no room for: `append` refuses them, or counts them and goes on without them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backlog:
    """What is not yet in the store, of all writers that share the spool."""

    size_bytes: int
    oldest_s: float  # since the first record of the oldest segment
    failures: int  # attempts to ship that failed since the last one that did not


class LogWriter:
    """The log of one kind of record. A context manager; safe to share between threads."""

    def __init__(
        self,
        url: str,
        kind: Kind = "predictions",
        *,
        spool: str | None = None,
        durability: Durability = "process",
        interval_s: float = 1.0,
        segment_records: int = 500,
        max_spool_bytes: int = MAX_SPOOL_BYTES,
        when_full: WhenFull = "shed",
        patience_s: float = 5.0,
    ) -> None:
        """Ships every `interval_s` or `segment_records`. Raises StorageError where the spool cannot be written.

        `patience_s`: how long `append` waits for the store at the level `remote`.
        """
        self.durability: Durability = durability
        self.dropped = 0  # records that were given up, as `drop` or the level `none` allows
        self.note_dropped: Callable[[int], object] = lambda records: None  # is told of each of these, on any thread
        self._store = storage.join(storage.to_url(url), kind)
        self._spool = Spool(spool_folder(url, spool) / kind, durability)
        self._interval_s = interval_s
        self._segment_records = segment_records
        self._max_spool_bytes = max_spool_bytes
        self._when_full = when_full
        self._patience_s = patience_s
        self._unwritten: list[bytes] = []  # at the level `none` alone
        self._written_at = time.monotonic()
        self._mutex = threading.Lock()  # of `dropped` and `_unwritten`
        self._failures = 0
        self._refusing = False  # since a disk, or the spool, was full
        self._adopted_at = float("-inf")
        self._not_adopted: set[Path] = set()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._shipping = threading.Lock()
        self._tried = threading.Condition()
        self._shipper = threading.Thread(target=self._ship_until_stopped, name=f"ship-{kind}", daemon=True)
        self._spool.measure()
        self._shipper.start()

    def append(self, records: Sequence[Record | Feedback]) -> bool:
        """Return when all records are as safe as the durability says, or False: dropped and counted, where that is allowed.

        Raises LogError: none of them is in the log then, but at the level `remote`, where the store may take them later.
        """
        lines = [encode_line(record) for record in records]
        if self.durability == "remote" and self._failures:
            raise LogError(f"{self._store}: the store has failed {self._failures} times running; it is tried again by itself")
        try:
            self._check_room(sum(map(len, lines)))
            if self.durability == "none":
                self._hold(lines)
                return True
            appended = self._spool.append(lines)
        except LogError as error:
            if not self._refusing:  # once, not for each of a thousand requests
                logger.warning("records are not written down for now: %s", error)
            self._refusing = True
            if self._when_full == "shed":
                raise
            self._drop(lines)
            return False
        if self._refusing:
            logger.warning("records are written down again")
            self._refusing = False
        if appended.records >= self._segment_records:
            self._spool.rotate()
            self._wake.set()
        if self.durability == "remote":
            self._wait_for_store(appended.segment)
        return True

    def flush(self) -> None:
        """Ship what is there now, and now and then what dead processes left. Raises what the store raises."""
        with self._shipping:
            self._write_down()
            self._spool.rotate()
            self._spool.measure()
            for segment in self._spool.closed_segments():
                self._ship(segment)
            if time.monotonic() - self._adopted_at >= ADOPT_EVERY_S:
                with self._spool.abandoned_segments() as segments:
                    for segment in segments:
                        self._adopt(segment)
                self._adopted_at = time.monotonic()

    def backlog(self) -> Backlog:
        """Looks at every segment: for a scrape, not for a request."""
        sizes = {}
        for segment in self._spool.all_segments():
            with contextlib.suppress(FileNotFoundError):  # shipped meanwhile
                found = segment.stat()
                sizes[found.st_mtime, segment] = found.st_size
        oldest_s = max(0.0, time.time() - _began_at(*min(sizes))) if sizes else 0.0
        return Backlog(sum(sizes.values()), oldest_s, self._failures)

    def close(self, patience_s: float = 1.5) -> None:
        """Ship once more; what a slow or failing store does not take stays in the spool, for the next process to adopt."""
        self._stop.set()
        self._wake.set()
        self._shipper.join(patience_s)
        self._write_down()
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_room(self, size_bytes: int) -> None:
        if self._spool.size_bytes + size_bytes > self._max_spool_bytes:
            raise LogError(
                f"{self._spool.folder}: the spool is full, {self._max_spool_bytes} bytes are allowed; the store takes nothing now"
            )

    def _hold(self, lines: list[bytes]) -> None:
        """In memory, for an interval or a segment at most: the shipper may hang in a store that does not answer."""
        with self._mutex:
            self._unwritten += lines
            full = len(self._unwritten) >= self._segment_records
        if full or time.monotonic() - self._written_at >= self._interval_s:
            self._write_down()
        if full:
            self._wake.set()

    def _write_down(self) -> None:
        """What the level `none` held in memory; a disk that does not take it costs the records, and they are counted."""
        with self._mutex:
            lines, self._unwritten = self._unwritten, []
        self._written_at = time.monotonic()
        try:
            if lines:
                self._spool.append(lines)
        except LogError as error:
            logger.warning("%d records are lost, as the durability none allows: %s", len(lines), error)
            self._drop(lines)

    def _drop(self, lines: list[bytes]) -> None:
        with self._mutex:
            self.dropped += len(lines)
        self.note_dropped(len(lines))

    def _wait_for_store(self, segment: Path) -> None:
        """A segment goes from the spool when the store has acknowledged it. All who wait share one upload."""
        self._wake.set()
        failures = self._failures
        deadline = time.monotonic() + self._patience_s
        with self._tried:
            while segment.exists():
                left_s = deadline - time.monotonic()
                if left_s <= 0 or self._failures > failures:
                    raise LogError(f"{self._store}: the store did not acknowledge the records; they stay in the spool")
                self._tried.wait(left_s)

    def _ship(self, segment: Path) -> None:
        ship_segment(segment, self._store)
        self._spool.remove(segment)
        with self._tried:
            self._tried.notify_all()

    def _adopt(self, segment: Path) -> None:
        """What a dead process left. A file that this one may not read or remove is no failure of the store."""
        try:
            self._ship(segment)
        except SegmentError as error:
            if segment not in self._not_adopted:  # once, not at each attempt
                logger.warning("what an earlier process left is not shipped: %s", error)
            self._not_adopted.add(segment)

    def _ship_until_stopped(self) -> None:
        while not self._stop.is_set():
            if self._failures:
                self._stop.wait(min(MAX_BACKOFF_S, self._interval_s * 2 ** min(self._failures, MOST_DOUBLINGS)))
            else:
                self._wake.wait(self._interval_s)
                self._wake.clear()
            self._try_flush()
        self._try_flush()  # what came while the last one ran

    def _try_flush(self) -> None:
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001  cloud clients raise types of their own; a dead shipper would fill the disk
            self._failures += 1
            if self._failures == 1:
                logger.warning("the prediction log stays in the spool for now: %s", error)
        else:
            if self._failures:
                logger.warning("the prediction log is shipped again, after %d failures", self._failures)
            self._failures = 0
        with self._tried:
            self._tried.notify_all()


def _began_at(written_at: float, segment: Path) -> float:
    """When the first record of a segment was made, in Unix seconds; when it was last written to, where that line says nothing."""
    try:
        with segment.open("rb") as stream:
            head = read_head(stream.readline().removesuffix(b"\n"))
    except OSError:  # shipped meanwhile, or not for this process to read, which `_adopt` tells
        return written_at
    return head.at.timestamp() if head else written_at


def ship_segment(segment: Path, store: str) -> None:
    """Copy a closed segment into its objects. Raises SegmentError, StorageError, and whatever a cloud client raises."""
    try:
        lines = segment.read_bytes().removesuffix(b"\n").split(b"\n")
        written_at = datetime.fromtimestamp(segment.stat().st_mtime, UTC)
    except FileNotFoundError:
        return  # a process that adopted it was faster
    except OSError as error:
        raise SegmentError(f"{segment}: the segment cannot be read: {error.strerror}") from error
    for partition, part in _by_partition(lines, partition_of(written_at)).items():
        _create(storage.join(store, partition, segment.stem), b"\n".join(part) + b"\n")


def _create(stem: str, lines: bytes) -> None:
    """An object that is there already is this one, shipped by who did not live to remove its segment; else nothing is lost."""
    packed = igzip.compress(lines, compresslevel=1, mtime=0)  # a fifth of the CPU of zlib at this level
    if storage.keep(f"{stem}.jsonl.gz", packed):
        return
    storage.create(f"{stem}-{hashlib.sha256(lines).hexdigest()[:16]}.jsonl.gz", packed)


def _by_partition(lines: list[bytes], fallback: str) -> dict[str, list[bytes]]:
    """A damaged line travels with the line before it, as evidence: the readers of that hour count it."""
    parts: dict[str, list[bytes]] = {}
    partition = next(filter(None, map(_partition, lines)), fallback)
    for line in filter(None, lines):
        partition = _partition(line) or partition
        parts.setdefault(partition, []).append(line)
    return parts


def _partition(line: bytes) -> str | None:
    head = read_head(line)
    return partition_of(head.at) if head else None
