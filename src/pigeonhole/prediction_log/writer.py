"""The door for writing: `append` puts records into the spool; a shipper thread moves closed segments to the store.

A segment becomes one gzip object per hour of its records, create-only under a name that follows from the segment, and is deleted
after that. Whatever goes wrong on the way, the segment is still there and is shipped again, to the same names.
"""

import contextlib
import gzip
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import msgspec

from pigeonhole import storage
from pigeonhole.prediction_log.record import Feedback, Head, Kind, Record, encode_line, is_intact, partition_of
from pigeonhole.prediction_log.spool import Durability, Spool, spool_folder

MAX_BACKOFF_S = 30.0
ADOPT_EVERY_S = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backlog:
    """What is not yet in the store, of all writers that share the spool."""

    size_bytes: int
    oldest_s: float  # since the last write to the oldest segment; its first record is at most one interval older
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
    ) -> None:
        """Ships every `interval_s` or `segment_records`. Raises StorageError where the spool cannot be written."""
        self._store = storage.join(storage.to_url(url), kind)
        self._spool = Spool(spool_folder(url, spool) / kind, durability)
        self._interval_s = interval_s
        self._segment_records = segment_records
        self._failures = 0
        self._adopted_at = float("-inf")
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._shipping = threading.Lock()
        self._shipper = threading.Thread(target=self._ship_until_stopped, name=f"ship-{kind}", daemon=True)
        self._shipper.start()

    def append(self, records: Sequence[Record | Feedback]) -> None:
        """Return when all records are as safe as the durability says. Raises LogError, and then none of them is in the log."""
        if self._spool.append([encode_line(record) for record in records]) >= self._segment_records:
            self._spool.rotate()
            self._wake.set()

    def flush(self) -> None:
        """Ship what is there now, and now and then what dead processes left. Raises what the store raises."""
        with self._shipping:
            self._spool.rotate()
            for segment in self._spool.closed_segments():
                ship_segment(segment, self._store)
            if time.monotonic() - self._adopted_at >= ADOPT_EVERY_S:
                with self._spool.abandoned_segments() as segments:
                    for segment in segments:
                        ship_segment(segment, self._store)
                self._adopted_at = time.monotonic()

    def backlog(self) -> Backlog:
        sizes, ages = [0], [0.0]
        for segment in self._spool.all_segments():
            with contextlib.suppress(FileNotFoundError):  # shipped meanwhile
                found = segment.stat()
                sizes.append(found.st_size)
                ages.append(time.time() - found.st_mtime)
        return Backlog(size_bytes=sum(sizes), oldest_s=max(ages), failures=self._failures)

    def close(self, patience_s: float = 1.5) -> None:
        """Ship once more; what a slow or failing store does not take stays in the spool, for the next process to adopt."""
        self._stop.set()
        self._wake.set()
        self._shipper.join(patience_s)
        self._spool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ship_until_stopped(self) -> None:
        while not self._stop.is_set():
            if self._failures:
                self._stop.wait(min(MAX_BACKOFF_S, self._interval_s * 2**self._failures))
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


def ship_segment(segment: Path, store: str) -> None:
    """Move a closed segment to its objects. Raises StorageError, and whatever a cloud client raises."""
    try:
        lines = segment.read_bytes().removesuffix(b"\n").split(b"\n")
        written_at = datetime.fromtimestamp(segment.stat().st_mtime, UTC)
    except FileNotFoundError:
        return  # a process that adopted it was faster
    for partition, part in _by_partition(lines, partition_of(written_at)).items():
        url = storage.join(store, partition, f"{segment.stem}.jsonl.gz")
        storage.create(url, gzip.compress(b"\n".join(part) + b"\n", compresslevel=6, mtime=0))
    segment.unlink(missing_ok=True)


def _by_partition(lines: list[bytes], fallback: str) -> dict[str, list[bytes]]:
    """A damaged line travels with the line before it, as evidence: the readers of that hour count it."""
    parts: dict[str, list[bytes]] = {}
    partition = next(filter(None, map(_partition, lines)), fallback)
    for line in filter(None, lines):
        partition = _partition(line) or partition
        parts.setdefault(partition, []).append(line)
    return parts


def _partition(line: bytes) -> str | None:
    if not is_intact(line):
        return None
    try:
        return partition_of(msgspec.json.decode(line, type=Head).at)
    except msgspec.DecodeError:
        return None
