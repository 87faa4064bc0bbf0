"""What a job is: its input by digest, its bundle by seal, its options, its shards. Written once, before the first answer.

A job that was killed is found again by its plan. The same command goes on where it stopped; another input, bundle or option under
the same output is refused by name, since its parts would not belong together.
"""

import bisect
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import Bundle, Precision, Task
from pigeonhole.errors import NOT_AS_TYPED, ConfigError, NotFoundError
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.source import Mark, Source, Span, Wanted

SCHEMA_VERSION = 1
PLAN = "_manifest.json"
SUCCESS = "_SUCCESS"
RECEIPTS = "_shards"
ERRORS = "_errors"
SHARD_BYTES = 4 << 20

OutputFormat = Literal["parquet", "csv", "jsonl"]


class PlannedInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    url: str
    sha256: str
    size_bytes: int
    rows: int


class PlannedBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    version: str
    seal: str
    precision: Precision
    labels: tuple[str, ...]
    task: Task = "single_label"


class PlannedOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What decides on the bytes of the output. Actors, addresses and prices do not."""

    text: str
    id: str | None
    top_k: int
    probabilities: bool
    embedding: bool
    log: str | None
    log_text: Literal["full", "none"]
    batch_tokens: int
    shard_rows: int
    max_chars: int


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`columns` says under which names the answers stand, should the input have such names already."""

    schema_version: int
    created_at: datetime
    format: OutputFormat
    bundle: PlannedBundle
    options: PlannedOptions
    columns: dict[str, str]
    rows: int
    shards: int
    inputs: tuple[PlannedInput, ...]

    @property
    def job(self) -> str:
        """Names the job in the prediction log."""
        return "score-" + hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:16]

    @property
    def wanted(self) -> Wanted:
        return Wanted(self.options.text, self.options.id, self.options.max_chars)


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Says that a shard is done: written last, so that what it tells of is there."""

    shard: int
    rows: int
    bad: int
    labels: dict[str, int]
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Shard:
    """Rows that become one output part: `first` is the number of the first one in the whole input, from 0."""

    number: int
    first: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        return sum(span.stop - span.start for span in self.spans)


def make_plan(config: ScoreConfig, bundle: Bundle, source: Source, now: datetime | None = None) -> Plan:
    """Raises ConfigError where no names are left for the columns to be added."""
    shard_rows = config.shard_rows or _shard_rows(source)
    manifest = bundle.manifest
    return Plan(
        schema_version=SCHEMA_VERSION,
        created_at=now or datetime.now(UTC),
        format=_output_format(config.output),
        bundle=PlannedBundle(
            name=manifest.name,
            version=manifest.version,
            seal=manifest.seal,
            precision=config.precision or manifest.served,
            labels=manifest.labels,
            task=manifest.task,
        ),
        options=PlannedOptions(
            text=config.text,
            id=config.id,
            top_k=min(config.top_k, len(manifest.labels)),
            probabilities=config.probabilities,
            embedding=config.embedding,
            log=storage.to_url(config.log) if config.log else None,
            log_text="none" if config.log_text == "none" else "full",
            batch_tokens=config.batch_tokens,
            shard_rows=shard_rows,
            max_chars=config.max_chars,
        ),
        columns=_added_columns(config, source.schema.names, manifest.task),
        rows=source.rows,
        shards=-(-source.rows // shard_rows),
        inputs=tuple(PlannedInput(file.url, file.sha256, file.size_bytes, file.rows) for file in source.files),
    )


def earlier_plan(output: str, plan: Plan) -> Plan | None:
    """The plan of an earlier start of the same job at `output`, or None. Raises ConfigError where something else is there."""
    url = storage.join(output, PLAN)
    _refuse_file(output)
    try:
        found = _decode(url, storage.read(url))
    except NotFoundError:
        _refuse_occupied(output)
        return None
    _refuse_other_job(output, found, plan)
    return found


def settle(output: str, plan: Plan) -> Plan:
    """The plan that holds at `output`: an earlier one of the same job, else this one, written there. Raises as earlier_plan."""
    found = earlier_plan(output, plan)
    if found is None and not storage.create(storage.join(output, PLAN), msgspec.json.format(msgspec.json.encode(plan), indent=1)):
        found = earlier_plan(output, plan)  # another one was faster
    return found or plan


def make_shards(source: Source, shard_rows: int) -> list[Shard]:
    """Every row of the input in one shard, in order; a shard may end in another file than it begins in."""
    starts: list[int] = []
    first = 0
    for file in source.files:
        starts.append(first)
        first += file.rows
    return [
        Shard(number, begin, tuple(_spans(source, starts, begin, min(begin + shard_rows, source.rows))))
        for number, begin in enumerate(range(0, source.rows, shard_rows))
    ]


def part_name(shard: int) -> str:
    return f"part-{shard:06d}"


def part_url(output: str, plan: Plan, shard: int) -> str:
    return storage.join(output, f"{part_name(shard)}.{plan.format}")


def receipt_url(output: str, shard: int) -> str:
    return storage.join(output, RECEIPTS, f"{part_name(shard)}.json")


def errors_url(output: str, shard: int) -> str:
    return storage.join(output, ERRORS, f"{part_name(shard)}.jsonl")


def _spans(source: Source, starts: Sequence[int], begin: int, end: int) -> list[Span]:
    spans: list[Span] = []
    place = bisect.bisect_right(starts, begin) - 1
    while begin < end:
        file, offset = source.files[place], starts[place]
        stop = min(end, offset + file.rows)
        if begin < stop:
            start = begin - offset
            spans.append(Span(file.url, start, stop - offset, _mark_before(file.marks, start), file.delimiter))
        begin = max(begin, stop)
        place += 1
    return spans


def _mark_before(marks: Sequence[Mark], row: int) -> Mark:
    place = bisect.bisect_right(marks, row, key=lambda mark: mark.row) - 1
    return marks[place] if place >= 0 else Mark(0, 0, 1)


def _shard_rows(source: Source) -> int:
    """About a hundred shards of an input, so that a restart loses little and two actors end together.

    No more bytes than SHARD_BYTES: two or three shards are in memory for each actor, and answers take 3 KB a row.
    """
    shard_rows = 2048
    while shard_rows < 8192 and source.rows > 128 * shard_rows:
        shard_rows *= 2
    return max(16, min(shard_rows, SHARD_BYTES // max(1, source.row_bytes)))


def _output_format(url: str) -> OutputFormat:
    name = url.rstrip("/").lower()
    if name.endswith(".csv"):
        return "csv"
    return "jsonl" if name.endswith((".jsonl", ".ndjson")) else "parquet"


def _added_columns(config: ScoreConfig, taken: Sequence[str], task: Task) -> dict[str, str]:
    added = ["label", *(["labels"] if task == "multi_label" else []), "score", "decision", "truncated"]
    optional = {
        "top_k": config.top_k > 0,
        "probabilities": config.probabilities,
        "embedding": config.embedding,
        "prediction_id": config.log is not None,
    }
    added += [name for name, wanted in optional.items() if wanted]
    columns = {name: name if name not in taken else f"predicted_{name}" for name in added}
    for name, column in columns.items():
        if column in taken:
            raise ConfigError(
                f"input={config.input}: has columns {name!r} and {column!r}; rename one, scoring adds its own {name}"
            )
    return columns


def _decode(url: str, data: bytes) -> Plan:
    try:
        return msgspec.json.decode(data, type=Plan)
    except NOT_AS_TYPED as error:
        raise ConfigError(f"{url}: not the manifest of a scoring job ({error}); choose another output") from error


def _refuse_file(output: str) -> None:
    path = storage.local_path(output)
    if path is not None and path.exists() and not path.is_dir():
        raise ConfigError(f"output={output}: is a file; scoring writes a folder of parts, choose another output")


def _refuse_occupied(output: str) -> None:
    found = storage.list_files(output)
    if found:
        raise ConfigError(f"output={output}: exists already and holds {found[0]}; choose a new folder")


def _refuse_other_job(output: str, found: Plan, plan: Plan) -> None:
    difference = _difference(found, plan)
    if difference:
        raise ConfigError(f"output={output}: holds another job: {difference}; choose another output, or give what it had")


def _difference(found: Plan, plan: Plan) -> str | None:
    for name in PlannedBundle.__struct_fields__:
        if getattr(found.bundle, name) != getattr(plan.bundle, name):
            return f"its bundle is {found.bundle.name} {found.bundle.version} {found.bundle.precision} (another {name})"
    then_files, now_files = ({file.url: file for file in each.inputs} for each in (found, plan))
    for url in sorted({*then_files, *now_files}):
        if url not in now_files:
            return f"its input {url} is gone"
        if url not in then_files:
            return f"its input did not have {url}"
        if then_files[url] != now_files[url]:
            return f"its input {url} has changed since"
    for name in PlannedOptions.__struct_fields__:
        then, now = getattr(found.options, name), getattr(plan.options, name)
        if then != now:
            return f"its {name} is {then}, not {now}"
    return None if msgspec.structs.replace(plan, created_at=found.created_at) == found else "it was made by another release"
