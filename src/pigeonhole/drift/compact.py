"""`uv run log-compact`: the many small objects of a finished hour become one Parquet object, sorted by id.

Killed at any point, it loses and doubles nothing: the compacted object is created under a name that follows from its content,
read back and compared, and only then are its sources deleted; readers drop what they meet twice. Each row keeps its line as it
was written, checksum included. An object that holds anything damaged, misplaced or too new stays as it is, as evidence.
"""

import contextlib
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pigeonhole import storage
from pigeonhole.command import command, say, with_help
from pigeonhole.environment import describe_variables, read_variables, variable, whole_number
from pigeonhole.errors import NOT_AS_TYPED, ConfigError, NotFoundError, RunError
from pigeonhole.prediction_log.record import SCHEMA_VERSION, Kind, is_intact, partition_of
from pigeonhole.prediction_log.window import COMPACTED, SHIPPED, DamagedObjectError, require_log

BATCH_ROWS = 10_000


@dataclass(frozen=True)
class Settings:
    log: str = variable("PIGEONHOLE_LOG", "log", "URL of the prediction log")
    settle_hours: int = variable(
        "PIGEONHOLE_SETTLE_HOURS", 2, "an hour is compacted when it ended this long ago", whole_number(1, 8760)
    )


HELP = f"""usage: [VARIABLE=value ...] uv run log-compact [--help]

Turn the objects of each finished hour of the prediction log into one Parquet object. May be run at any time, any number of times.

The environment sets (variable, default, meaning):
{describe_variables(Settings)}
"""


class Head(msgspec.Struct, frozen=True):
    """What a line is sorted and found by; feedback has a feedback_id besides the prediction's."""

    schema_version: int
    at: datetime
    prediction_id: str
    feedback_id: str | None = None

    @property
    def identity(self) -> str:
        return self.feedback_id or self.prediction_id


@dataclass
class Tally:
    """What one run did."""

    hours: int = 0
    records: int = 0
    duplicates: int = 0
    sources_deleted: int = 0
    sources_left: list[str] = field(default_factory=list)  # with something in them that is not to be touched


def compact_log(log: str, before: datetime) -> Tally:
    """Every hour that ended at `before` or earlier. Raises StorageError, and RunError where an object does not read back."""
    tally = Tally()
    last = partition_of(before)
    for kind in get_args(Kind):
        for partition, folder in hours_of(log, kind):
            if partition < last:
                compact_hour(folder, partition, tally)
    return tally


def hours_of(log: str, kind: Kind) -> Iterator[tuple[str, str]]:
    """Partition and folder of each."""
    root = storage.join(storage.to_url(log), kind)
    for day in storage.list_folders(root):
        for hour in storage.list_folders(storage.join(root, day)):
            yield f"{day}/{hour}", storage.join(root, day, hour)


def objects_of(folder: str) -> list[str]:
    return [name for name in storage.list_files(folder) if name.endswith((SHIPPED, COMPACTED))]


def lines_of(url: str) -> list[bytes]:
    """What an object of either form holds, damaged lines too."""
    if url.endswith(COMPACTED):
        return list(compacted_lines(url))
    return gzip.decompress(storage.read(url)).removesuffix(b"\n").split(b"\n")


def compact_hour(folder: str, partition: str, tally: Tally) -> None:
    """One object in place of many; nothing is done where there is but one compacted object already."""
    names = objects_of(folder)
    if not any(name.endswith(SHIPPED) for name in names) and len(names) < 2:
        return
    lines: dict[str, bytes] = {}
    sources = []
    met = 0
    for name in names:
        found = _sound_lines(storage.join(folder, name), partition)
        if found is None:
            tally.sources_left.append(f"{partition}/{name}")
        else:
            sources.append(name)
            met += len(found)
            lines.update((head.identity, line) for head, line in found)
    if not any(name.endswith(SHIPPED) for name in sources) and len(sources) < 2:
        return
    target = create_compacted(folder, [lines[identity] for identity in sorted(lines)])
    for name in sources:
        if name != target:
            with contextlib.suppress(NotFoundError):  # another run was faster
                storage.delete(storage.join(folder, name))
                tally.sources_deleted += 1
    tally.hours += 1
    tally.records += len(lines)
    tally.duplicates += met - len(lines)


def compacted_lines(url: str) -> Iterator[bytes]:
    """What `read_window` needs to read compacted hours. Raises NotFoundError before the first line, and DamagedObjectError."""
    with storage.open_read(url) as stream:
        try:
            yield from _lines_in(pq.ParquetFile(stream))
        except (pa.ArrowException, KeyError, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and not _is_arrows_own(error):
                raise
            raise DamagedObjectError(f"{url}: {error}") from error


def _is_arrows_own(error: OSError) -> bool:
    """Damage is told by Arrow as a bare OSError; what a disk or a store raises has a number, or a class of its own."""
    return type(error) is OSError and error.errno is None


def _lines_in(file: pq.ParquetFile) -> Iterator[bytes]:
    if not pa.types.is_binary(file.schema_arrow.field("line").type):
        raise pa.ArrowTypeError("its lines are no bytes")
    for batch in file.iter_batches(BATCH_ROWS, columns=["line"]):
        yield from (line or b"" for line in batch.column("line").to_pylist())


def create_compacted(folder: str, lines: list[bytes]) -> str:
    """One object of sound lines, sorted by their ids. Its name follows from its content: one that is there already is this one.

    Raises RunError where it does not read back.
    """
    name = f"compact-{hashlib.sha256(b''.join(lines)).hexdigest()[:24]}{COMPACTED}"
    url = storage.join(folder, name)
    heads = [msgspec.json.decode(line, type=Head) for line in lines]
    table = pa.table(
        {
            "id": pa.array([head.identity for head in heads], pa.string()),
            "prediction_id": pa.array([head.prediction_id for head in heads], pa.string()),
            "at": pa.array([head.at for head in heads], pa.timestamp("us", "UTC")),
            "line": pa.array(lines, pa.binary()),
        }
    )
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", row_group_size=BATCH_ROWS, use_dictionary=False)
    storage.create(url, buffer.getvalue())
    if list(compacted_lines(url)) != lines:
        raise RunError(f"{url}: does not read back as it was written; its sources are kept, delete it and run again")
    return name


def _sound_lines(url: str, partition: str) -> list[tuple[Head, bytes]] | None:
    """All lines of an object, or None where one of them, or the object, is not sound."""
    try:
        lines = lines_of(url)
        found = [(msgspec.json.decode(line, type=Head), line) for line in lines if is_intact(line)]
    except (OSError, EOFError, zlib.error, DamagedObjectError, NotFoundError, *NOT_AS_TYPED):
        return None
    sound = all(head.schema_version <= SCHEMA_VERSION and partition_of(head.at) == partition for head, _ in found)
    return found if sound and found and len(found) == len(lines) else None


@with_help(HELP)
def run(arguments: list[str]) -> dict[str, Any]:
    if arguments:
        raise ConfigError(f"unexpected argument {arguments[0]!r}: the environment sets it all, see uv run log-compact --help")
    settings = read_variables(Settings, os.environ)
    require_log("PIGEONHOLE_LOG", settings.log)
    tally = compact_log(settings.log, datetime.now(UTC) - timedelta(hours=settings.settle_hours))
    say(f"{tally.hours} hours compacted, {tally.sources_deleted} objects replaced, {len(tally.sources_left)} left as they are")
    return {"log": settings.log, **vars(tally)}


main = command(run)

if __name__ == "__main__":
    main()
