"""`uv run score bundle=URL input=GLOB output=URL text=COLUMN`: a table through a bundle, restartable, with the API's answers."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import RunError
from pigeonhole.options import read_options
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.engine import Cluster, Job, without_files
from pigeonhole.scoring.plan import (
    ERRORS,
    RECEIPTS,
    SUCCESS,
    Plan,
    Receipt,
    Shard,
    earlier_plan,
    make_plan,
    make_shards,
    settle,
)
from pigeonhole.scoring.progress import Progress
from pigeonhole.scoring.source import Wanted, find_files, scan

USAGE = """usage: score bundle=URL input=GLOB_OR_URL output=URL text=COLUMN [key=value …]

Score tables of any size through a bundle, with the service's own answers; given again after a kill, it goes on where it stopped.

uv run --isolated --group score score bundle=BUNDLE input='in/*.parquet' output=scored text=message"""


@dataclass
class Done:
    """The shards that have a receipt, added up: what a job keeps of them does not grow with their rows."""

    shards: set[int] = field(default_factory=set)
    scored: int = 0
    bad: int = 0
    labels: Counter[str] = field(default_factory=Counter)

    def add(self, receipt: Receipt) -> None:
        self.shards.add(receipt.shard)
        self.scored += receipt.rows
        self.bad += receipt.bad
        self.labels.update(receipt.labels)


@dataclass(frozen=True)
class Summary:
    """Of a finished job; what `_SUCCESS` says."""

    rows: int
    scored: int
    bad: int
    shards: int
    labels: dict[str, int]


@with_help(USAGE, ScoreConfig)
def run(arguments: list[str]) -> dict[str, Any]:
    return score(read_options(ScoreConfig, arguments))


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score what is not scored yet. Raises UserError before anything is written, RunError for too many bad rows."""
    began = time.monotonic()
    output = storage.to_url(config.output)
    bundle = open_bundle(config.bundle, config.precision or "served")
    Classifier.open(bundle, config.precision)  # refused here in one line, and not later by each of the actors
    source = scan(find_files(config.input, output), Wanted(config.text, config.id, config.max_chars))
    plan = make_plan(config, bundle, source)
    plan = earlier_plan(output, plan) or plan
    done = read_receipts(output)
    _refuse_too_many_bad(config, plan, done)
    scanned = time.monotonic()
    shards = [shard for shard in make_shards(source, plan.options.shard_rows) if shard.number not in done.shards]
    if done.shards:
        say(f"{len(done.shards):,} of {plan.shards:,} shards are done already")
    speed: dict[str, Any] = {"rows_per_second": None, "cost_usd": 0.0, "seconds": {}}
    if shards:
        with Cluster(config.ray_address, config.actors) as cluster:
            plan = settle(output, plan)  # the first that is written, when all else is known to be there
            job = Job(output, storage.to_url(config.bundle), plan, without_files(source))
            speed = _score_shards(config, cluster, job, shards, done, scanned)
    summary = _finish(output, plan, done)
    return {
        "output": output,
        "bundle": plan.bundle.version,
        "precision": plan.bundle.precision,
        **asdict(summary),
        "columns": plan.columns,
        "errors": storage.join(output, ERRORS) if summary.bad else None,
        "shards_of_earlier_runs": plan.shards - len(shards),
        **speed,
        "seconds": {"scan": round(scanned - began, 2), **speed["seconds"]},
    }


def _score_shards(
    config: ScoreConfig, cluster: Cluster, job: Job, shards: list[Shard], done: Done, began: float
) -> dict[str, Any]:
    """Adds to `done`. Start-up counts from `began`, by the monotonic clock."""
    rows = job.plan.rows
    finished = rows - sum(shard.rows for shard in shards)
    say(f"{rows - finished:,} of {rows:,} rows in {len(shards):,} shards, {cluster.actors} actors")
    progress = Progress(rows, finished, cluster.actors * config.core_hour_usd)
    for receipt, took_s in cluster.score(job, shards):
        done.add(receipt)
        progress.add(receipt.rows + receipt.bad, receipt.bad, took_s)
        _refuse_too_many_bad(config, job.plan, done)
    start_s = time.monotonic() - began - progress.seconds
    return {
        "actors": cluster.actors,
        "rows_per_second": round(progress.rows_per_second, 1),
        "cost_usd": round(progress.cost_usd, 6),
        "seconds": {"start": round(start_s, 2), "score": round(progress.seconds, 2)},
    }


def _refuse_too_many_bad(config: ScoreConfig, plan: Plan, done: Done) -> None:
    if done.bad > config.max_bad_share * plan.rows:
        raise RunError(
            f"{done.bad:,} of {plan.rows:,} rows are bad, max_bad_share is {config.max_bad_share:g}; "
            f"{storage.join(storage.to_url(config.output), ERRORS)} says which, and a higher max_bad_share goes on from here"
        )


def read_receipts(output: str) -> Done:
    """Of the shards that are done, whoever did them."""
    folder = storage.join(output, RECEIPTS)
    urls = [storage.join(folder, name) for name in storage.list_files(folder) if name.endswith(".json") and name[0] != "."]
    done = Done()
    with ThreadPoolExecutor(16) as pool:
        for url, data in zip(urls, pool.map(storage.read, urls), strict=True):
            try:
                done.add(msgspec.json.decode(data, type=Receipt))
            except msgspec.DecodeError as error:  # of JSON, or of another shape
                raise RunError(f"{url}: this is no receipt ({error}); delete it, and its shard is scored again") from error
    return done


def _finish(output: str, plan: Plan, done: Done) -> Summary:
    if len(done.shards) != plan.shards or done.scored + done.bad != plan.rows:
        raise RunError(
            f"{output}: {len(done.shards)} of {plan.shards} shards and {done.scored + done.bad} of {plan.rows} rows are there"
        )
    summary = Summary(plan.rows, done.scored, done.bad, plan.shards, dict(sorted(done.labels.items())))
    for name in storage.list_files(output):
        if name.rpartition("/")[2].startswith(".") and name.endswith(".tmp"):  # what a killed worker was writing
            storage.delete(storage.join(output, name))
    storage.create(storage.join(output, SUCCESS), msgspec.json.encode(summary))
    return summary


main = command(run)

if __name__ == "__main__":
    main()
