"""Shards through Ray Data: reading tasks fill blocks, a pool of actors (one model session each) answers and commits them.

A row of the Ray data set is a whole shard (its rows in Arrow's IPC format), so that Ray may cut and join blocks as it likes. What
comes back is a receipt; the answers themselves never travel. Ray is imported here alone, and late: it takes seconds.
"""

import contextlib
import dataclasses
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import msgspec
import pyarrow as pa

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import BundleError, ConfigError, PigeonholeError, RunError, UserError
from pigeonhole.scoring.plan import Plan, Receipt, Shard
from pigeonhole.scoring.shard import answer, commit
from pigeonhole.scoring.source import BadRow, Place, Rows, Source, read

ACTORS_A_READER = 64  # a reader parses 200,000 rows a second and more, an actor answers some hundreds
OBJECT_STORE_BYTES = 100 << 20  # for blocks that wait; Ray's least is 75 MiB

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would start every worker through uv again
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns that it hides GPUs from actors that ask for none
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # Ray binds to 127.0.0.1 by itself on those; this makes it do so on Linux


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    output: str
    bundle_url: str
    plan: Plan
    source: Source  # without its files: a shard has the spans that it needs


class Cluster:
    """Ray while it is used: this machine's, started and ended here, or one that runs already. Raises ConfigError."""

    def __init__(self, address: str | None, actors: int) -> None:
        os.environ.update(ENVIRONMENT | ({} if address else LOOPBACK))
        try:
            import ray
        except ImportError as error:
            raise ConfigError("Ray is not installed here; run `uv run --group score score …`") from error
        self._ray: Any = ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            try:
                with _native_silence():
                    ray.init(address=address, **quiet)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"ray_address={address}: no Ray cluster answers there ({str(error).splitlines()[0]})"
                ) from error
            self.actors = actors or max(1, int(self._ray.cluster_resources().get("CPU", 2)) - 1)
        else:
            self.actors = actors or len(os.sched_getaffinity(0))
            # One more logical core than actors: with all of them taken, no reading task would ever start.
            cores = self.actors + self._readers
            with _native_silence():
                ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def _readers(self) -> int:
        return 1 + self.actors // ACTORS_A_READER

    def score(self, job: Job, shards: Sequence[Shard]) -> Iterator[tuple[Receipt, float]]:
        """A receipt for each shard and the seconds that it took, in the order in which they are done.

        Raises UserError or RunError, as its worker did.
        """
        import ray.data

        _silence(ray.data.DataContext.get_current())
        items = [{"shard": msgspec.json.encode(shard)} for shard in shards]
        blocks = (
            ray.data.from_items(items, override_num_blocks=len(items))
            .map_batches(
                functools.partial(read_block, job), batch_size=1, batch_format="pyarrow", num_cpus=1, concurrency=self._readers
            )
            .map_batches(
                Scorer,
                fn_constructor_args=(job,),
                batch_size=1,
                batch_format="pyarrow",
                num_cpus=1,
                compute=ray.data.ActorPoolStrategy(size=self.actors),
            )
        )
        try:
            for row in blocks.iter_rows():
                yield _receipt(row), row["seconds"]
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up: {_last_line(error)}; the same command goes on where it stopped") from error


def read_block(job: Job, items: pa.Table) -> pa.Table:
    """A shard's place -> its rows, or what is wrong with them."""
    shard = msgspec.json.decode(items.column("shard")[0].as_py(), type=Shard)
    try:
        rows = read(job.source, shard.spans, job.plan.wanted)
    except PigeonholeError as error:
        return _block(shard.number, error=str(error), exit_code=error.exit_code)
    notes = msgspec.json.encode((rows.places, rows.bad))
    return _block(shard.number, table=_to_ipc(rows.table), notes=notes)


class Scorer:
    """An actor: one model session, one thread."""

    def __init__(self, job: Job) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would take the core of the actor beside it
        bundle = open_bundle(job.bundle_url)
        if bundle.manifest.seal != job.plan.bundle.seal:
            raise BundleError(f"{job.bundle_url}: is another bundle than the one that this job began with")
        self._job = job
        self._classifier = Classifier.open(bundle, job.plan.bundle.precision)
        self._classifier.batch_tokens = job.plan.options.batch_tokens

    def __call__(self, blocks: pa.Table) -> pa.Table:
        began = time.perf_counter()
        [block] = blocks.drop_columns("table").to_pylist()
        if block["error"]:
            return _outcome(error=block["error"], exit_code=block["exit_code"])
        places, bad = msgspec.json.decode(block["notes"], type=tuple[list[Place], list[BadRow]])
        rows = Rows(_from_ipc(blocks.column("table")), self._job.plan.options.text, places, bad)
        try:
            found = answer(self._classifier, rows)
            receipt = commit(self._job.output, self._job.plan, block["shard"], found)
        except PigeonholeError as error:
            return _outcome(error=str(error), exit_code=error.exit_code)
        return _outcome(receipt=msgspec.json.encode(receipt), seconds=time.perf_counter() - began)


def without_files(source: Source) -> Source:
    return dataclasses.replace(source, files=())


@contextlib.contextmanager
def _native_silence() -> Iterator[None]:
    """Ray's native part tells on stderr, past Python, which log level it was given."""
    sys.stderr.flush()
    stderr = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _silence(context: Any) -> None:
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _block(shard: int, table: bytes = b"", notes: bytes = b"", error: str = "", exit_code: int = 0) -> pa.Table:
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "table": pa.array([table], pa.large_binary()),
            "notes": pa.array([notes], pa.large_binary()),
            "error": [error],
            "exit_code": pa.array([exit_code], pa.int64()),
        }
    )


def _outcome(receipt: bytes = b"", seconds: float = 0.0, error: str = "", exit_code: int = 0) -> pa.Table:
    return pa.table(
        {"receipt": [receipt], "seconds": [seconds], "error": [error], "exit_code": pa.array([exit_code], pa.int64())}
    )


def _receipt(outcome: dict[str, Any]) -> Receipt:
    if outcome["error"]:
        raise (UserError if outcome["exit_code"] == UserError.exit_code else RunError)(outcome["error"])
    return msgspec.json.decode(outcome["receipt"], type=Receipt)


def _to_ipc(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _from_ipc(column: pa.ChunkedArray) -> pa.Table:
    """Without a copy: the buffers are those of the block."""
    return pa.ipc.open_stream(column[0].as_buffer()).read_all()


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
