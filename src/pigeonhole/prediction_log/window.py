"""The door for reading: the records of a span of time, from the store and, for a local log, from the spool too.

A wrong number never comes out: what is torn, doubled, misplaced or too new is left out and counted.
"""

import gzip
import itertools
import operator
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, Generic, Literal, TypeVar, get_args, overload

import msgspec

from pigeonhole import storage
from pigeonhole.errors import NOT_AS_TYPED, ConfigError, NotFoundError, StorageError
from pigeonhole.prediction_log.record import SCHEMA_VERSION, Feedback, Kind, Record, is_intact, partition_of, read_head, span_of

SHIPPED = ".jsonl.gz"
COMPACTED = ".parquet"  # objects of compacted hours; this module cannot read them, and says so
CompactedReader = Callable[[str], Iterator[bytes]]
"""The lines of a compacted object, by its URL. Raises NotFoundError before the first line or never, and DamagedObjectError."""

LINE_LIMIT_BYTES = 4 << 20  # a record has a few KB; what is longer is damage, and must not fill the memory
BLOCK_BYTES = 64 << 10  # unpacked at once: a readline for each record costs more than its decoding


@dataclass
class Counts:
    """What one pass over a window met; only `records` were given out."""

    records: int = 0
    duplicates: int = 0  # shipped twice, or met both in the spool and in the store
    torn: int = 0  # lines whose checksum or shape is wrong
    unknown_versions: int = 0  # of the schema: written by a newer release, mostly
    misplaced: int = 0  # lines in the partition of another hour
    damaged_objects: int = 0  # objects that stop being gzip or Parquet somewhere; the lines before that point are read
    hours_ahead: int = 0  # hours of the store that have not begun: some writer's clock is ahead, and its records are not in here


RecordT = TypeVar("RecordT", Record, Feedback)


class DamagedObjectError(Exception):
    """An object whose bytes make no sense; readers count it."""


class Window(Generic[RecordT]):
    """The records with `start <= at < end`. Iterating streams them, each time anew; `counts` is of the latest pass."""

    def __init__(
        self,
        url: str,
        start: datetime,
        end: datetime,
        kind: Kind,
        record_type: type[RecordT],
        read_compacted: CompactedReader | None = None,
    ) -> None:
        self.url = url
        self.start = start
        self.end = end
        self.counts = Counts()
        self._kind = kind
        self._read_compacted = read_compacted
        self._identity = operator.attrgetter("prediction_id" if kind == "predictions" else "feedback_id")
        self._decoder: msgspec.json.Decoder[RecordT] = msgspec.json.Decoder(record_type)

    def __iter__(self) -> Iterator[RecordT]:
        self.counts = Counts()
        # The spool comes first: what is shipped meanwhile is then met twice, and not missed.
        spooled: dict[str, list[bytes]] = self._spooled_lines()
        for partition in sorted({*spooled, *self._partitions()}):
            yield from self._records_of(partition, spooled.pop(partition, []))

    def _records_of(self, partition: str, spooled: list[bytes]) -> Iterator[RecordT]:
        seen: set[str] = set()  # duplicates have the same time, hence the same partition
        first, last = span_of(partition)
        for line in itertools.chain(self._shipped_lines(partition), spooled):
            record = self._decode(line)
            if record is None:
                continue
            if not first <= record.at <= last:
                self.counts.misplaced += 1
            elif self.start <= record.at < self.end:
                identity = self._identity(record)
                if identity in seen:
                    self.counts.duplicates += 1
                else:
                    seen.add(identity)
                    self.counts.records += 1
                    yield record

    def _decode(self, line: bytes) -> RecordT | None:
        try:
            if is_intact(line):
                record = self._decoder.decode(line)
                if 1 <= record.schema_version <= SCHEMA_VERSION:
                    return record
        except NOT_AS_TYPED:
            pass  # the head says whether a newer release wrote it
        head = read_head(line)
        if head is None or 1 <= head.schema_version <= SCHEMA_VERSION:
            self.counts.torn += 1
        else:
            self.counts.unknown_versions += 1
        return None

    def _spooled_lines(self) -> dict[str, list[bytes]]:
        """By partition. An unfinished last line is not counted: it is being written, or its writer died before it answered."""
        lines: dict[str, list[bytes]] = {}
        folder = storage.local_path(self.url)
        for segment in sorted((folder / "spool" / self._kind).glob("*.jsonl")) if folder else []:
            try:
                finished = segment.read_bytes().rpartition(b"\n")[0]
            except FileNotFoundError:
                continue  # shipped meanwhile
            except OSError as error:
                raise StorageError(f"{segment}: the segment cannot be read ({error.strerror}); run as who wrote it") from error
            for line in filter(None, finished.split(b"\n")):
                head = read_head(line)
                if head is None:
                    self.counts.torn += 1
                elif self.start <= head.at < self.end:
                    lines.setdefault(partition_of(head.at), []).append(line)
        return lines

    def _partitions(self) -> Iterator[str]:
        """The hours that the window touches and that the store has. Those that have not begun yet are counted on the way."""
        if self.start >= self.end:
            return
        root = storage.join(self.url, self._kind)
        first, last = partition_of(self.start), partition_of(self.end - timedelta(microseconds=1))
        now = partition_of(datetime.now(UTC))
        for date in filter(re.compile(r"date=\d{4}-\d\d-\d\d").fullmatch, storage.list_folders(root)):
            touched = first[: len(date)] <= date <= last[: len(date)]
            if touched or date >= now[: len(date)]:
                hours = [f"{date}/{hour}" for hour in storage.list_folders(storage.join(root, date))]
                self.counts.hours_ahead += sum(hour > now for hour in hours)
                yield from (hour for hour in hours if first <= hour <= last)

    def _shipped_lines(self, partition: str) -> Iterator[bytes]:
        """Where an object is gone since it was listed, its records may be in a compacted one by now: look again."""
        folder = storage.join(self.url, self._kind, partition)
        read: set[str] = set()
        gone = True
        while gone:
            gone = False
            for name in storage.list_files(folder):
                if name in read or not name.endswith((SHIPPED, COMPACTED)):
                    continue
                read.add(name)
                try:
                    yield from self._object_lines(storage.join(folder, name))
                except NotFoundError:
                    gone = True

    def _object_lines(self, url: str) -> Iterator[bytes]:
        """Raises NotFoundError."""
        if url.endswith(COMPACTED):
            if self._read_compacted is None:
                raise StorageError(f"{url}: is compacted; only what has the drift group installed reads compacted hours")
            try:
                yield from self._read_compacted(url)
            except DamagedObjectError:
                self.counts.damaged_objects += 1
        else:
            with storage.open_read(url) as stream:
                yield from self._unpacked_lines(stream)

    def _unpacked_lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        try:
            with gzip.open(stream) as unpacked:
                yield from _lines_of(unpacked)
            if stream.tell() == 0:
                raise EOFError
        except (gzip.BadGzipFile, EOFError, zlib.error):
            self.counts.damaged_objects += 1


def _lines_of(stream: gzip.GzipFile) -> Iterator[bytes]:
    """Without their newlines. What is longer than LINE_LIMIT_BYTES comes in pieces, none of which has a checksum that fits."""
    rest = b""
    while block := stream.read1(BLOCK_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) >= LINE_LIMIT_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def require_log(key: str, url: str) -> None:
    """Raises ConfigError, naming the key, for a place where nobody has ever logged anything; StorageError."""
    if not {*get_args(Kind), "spool"} & set(storage.list_folders(url)):
        raise ConfigError(f"{key}={url}: there is no log here; expected a folder that holds {' or '.join(get_args(Kind))}")


@overload
def read_window(
    url: str,
    start: datetime,
    end: datetime,
    kind: Literal["predictions"] = "predictions",
    read_compacted: CompactedReader | None = None,
) -> Window[Record]: ...
@overload
def read_window(
    url: str, start: datetime, end: datetime, kind: Literal["feedback"], read_compacted: CompactedReader | None = None
) -> Window[Feedback]: ...
def read_window(
    url: str, start: datetime, end: datetime, kind: Kind = "predictions", read_compacted: CompactedReader | None = None
) -> Window[Any]:
    """The records with `start <= at < end`; both need a time zone. Raises ConfigError; reading raises StorageError."""
    for name, moment in (("start", start), ("end", end)):
        if moment.tzinfo is None:
            raise ConfigError(f"{name}={moment.isoformat()} has no time zone; give one, such as datetime(..., tzinfo=UTC)")
    return Window(url, start, end, kind, Record if kind == "predictions" else Feedback, read_compacted)
