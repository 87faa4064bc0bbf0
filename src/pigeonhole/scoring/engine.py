"""Shards through Ray: reading tasks fill blocks, a pool of actors (one model session each) answers and commits them.

Blocks are streamed: a shard is read when an actor will soon be free for it, so that memory does not grow with the input. What
comes back is a receipt; the answers themselves never travel. Ray is imported here alone, and late: it takes seconds. Why this is
not Ray Data: docs/architecture.md.
"""

import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import socket
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.errors import BundleError, ConfigError, PigeonholeError, RunError
from pigeonhole.scoring.plan import Plan, Receipt, Shard
from pigeonhole.scoring.shard import answer, commit
from pigeonhole.scoring.source import Rows, Source, read

ATTEMPTS = 5  # of a shard whose worker dies; a shard that kills its worker must not do so for ever
ACTORS_A_READER = 64  # a reader parses 200,000 rows a second and more, an actor answers some hundreds
KNOCK_S = 10.0
OBJECT_STORE_BYTES = 100 << 20  # for blocks that wait; Ray's least is 75 MiB

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run`, Ray would start every worker through uv again
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # Ray's own is 15, and any other program would then come first; `nice uv run …` still does it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # or it warns that it hides GPUs from actors that ask for none
}
LOCAL = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray binds to 127.0.0.1 by itself on those; this makes it do so on Linux
    # No memory pool for each thread: 30 MB less in all processes together. To hand large blocks back at once (mmap and trim
    # thresholds of 256 KiB and 1 MiB) would save 30 MB more, and cost 6 % of the speed.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "MALLOC_ARENA_MAX": "1",
}


@dataclass(frozen=True)
class Job:
    """All that a worker needs to know."""

    output: str
    bundle_url: str
    plan: Plan
    source: Source  # without its files: a shard has the spans that it needs


class Cluster:
    """Ray while it is used: this machine's, started and ended here, or one that runs already.

    Raises ConfigError where no cluster answers, RunError where Ray does not start here.
    """

    def __init__(self, address: str | None, actors: int) -> None:
        os.environ.update(ENVIRONMENT | ({} if address else LOCAL))
        try:
            import ray
        except ImportError as error:
            raise ConfigError("Ray is not installed here; run `uv run --isolated --group score score …`") from error
        self._ray: Any = ray
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address:
            try:
                _knock(_last_known(ray) if address == "auto" else address)
                with _native_silence():
                    ray.init(address=address, **quiet)
            except (OSError, ValueError, RuntimeError) as error:
                raise ConfigError(
                    f"ray_address={address}: no Ray cluster answers there ({str(error).splitlines()[0]})"
                ) from error
            self.actors = actors or max(1, int(ray.cluster_resources().get("CPU", 1)))
            # Readers take none of its logical cores: actors may take all that there are, and those that are still to come.
            self._reader_cores = 0
        else:
            self.actors = actors or local_cores()
            # More logical cores than actors: with all of them taken, no reader would ever start. Few, as each takes memory.
            self._reader_cores = 1
            cores = self.actors + 1 + self.actors // ACTORS_A_READER
            own = {"num_cpus": cores, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            try:
                with _native_silence():
                    ray.init("local", **own, **quiet)
                    _stop_bystanders(ray)
            except Exception as error:  # Ray's start raises anything, bare Exception too
                raise RunError(f"Ray did not start: {_last_line(error)}; the same command goes on from here") from error
        logging.getLogger("ray").setLevel(logging.ERROR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def score(self, job: Job, shards: Iterable[Shard]) -> Iterator[tuple[Receipt, float]]:
        """A receipt for each shard and the seconds that it took, in the order in which they are done.

        Raises UserError or RunError, as its worker did.
        """
        ray = self._ray
        known = ray.put(job)
        read_shard = ray.remote(num_cpus=self._reader_cores, max_retries=ATTEMPTS)(read_block)
        actor = ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=ATTEMPTS)(Scorer)
        # Each actor has a shard that it answers and one that is read meanwhile; nothing more is read, however many wait.
        free = deque([actor.remote(known) for _ in range(self.actors)] * 2)
        running: dict[Any, Any] = {}
        waiting = iter(shards)
        try:
            while True:
                for shard in itertools.islice(waiting, len(free)):
                    scorer = free.popleft()
                    running[scorer.score.remote(shard.number, read_shard.remote(known, shard))] = scorer
                if not running:
                    return
                [done], _ = ray.wait(list(running))
                free.append(running.pop(done))
                yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PigeonholeError):
                raise error.cause from None
            raise RunError(f"a worker failed: {_last_line(error)}") from error
        except ray.exceptions.RayError as error:
            raise RunError(f"Ray gave up: {_last_line(error)}; the same command goes on where it stopped") from error


def local_cores() -> int:
    """Those that this process may use; all of them on macOS, which lends none out one by one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_block(job: Job, shard: Shard) -> Rows:
    """A shard's rows. Raises DataError, StorageError."""
    return read(job.source, shard.spans, job.plan.wanted)


class Scorer:
    """An actor: one model session, one thread."""

    def __init__(self, job: Job) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads would take the core of the actor beside it
        self._job = job

    @functools.cached_property
    def _classifier(self) -> Classifier:
        """Opened with the first shard: what a constructor raises reaches the driver without its type."""
        bundle = open_bundle(self._job.bundle_url, self._job.plan.bundle.precision)
        if bundle.manifest.seal != self._job.plan.bundle.seal:
            raise BundleError(f"{self._job.bundle_url}: is another bundle than the one that this job began with")
        classifier = Classifier.open(bundle, self._job.plan.bundle.precision)
        classifier.batch_tokens = self._job.plan.options.batch_tokens
        return classifier

    def score(self, shard: int, rows: Rows) -> tuple[Receipt, float]:
        """The receipt of a shard that is answered and committed, and the seconds that this took."""
        classifier = self._classifier
        began = time.perf_counter()
        receipt = commit(self._job.output, self._job.plan, shard, answer(classifier, rows))
        return receipt, time.perf_counter() - began


def without_files(source: Source) -> Source:
    return dataclasses.replace(source, files=())


def _last_known(ray: Any) -> str:
    """Where `auto` leads: a cluster that ended without a word is still written down there, and Ray would try it for minutes."""
    return os.environ.get("RAY_ADDRESS") or ray._private.utils.read_ray_address() or ""


def _knock(address: str) -> None:
    """Ray itself tries an address for minutes before it gives up. Raises OSError."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()


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


def _stop_bystanders(ray: Any) -> None:
    """End what Ray starts unasked and no job of ours needs: 180 MB of the 1,000 that a job may take."""
    node = ray._private.worker.global_worker.node
    node.kill_monitor(check_alive=False)  # the autoscaler
    node.kill_dashboard(check_alive=False)  # its server, which include_dashboard=False leaves running
    node.kill_log_monitor(check_alive=False)  # log_to_driver=False leaves it without a reader


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
