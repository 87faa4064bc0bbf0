"""`uv run score bundle=URL input=GLOB output=URL text=COLUMN`: a table through a bundle, restartable, with the API's answers."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say
from pigeonhole.errors import RunError
from pigeonhole.options import key_lines, read_options
from pigeonhole.scoring.config import ScoreConfig
from pigeonhole.scoring.engine import Cluster, Job, without_files
from pigeonhole.scoring.plan import ERRORS, RECEIPTS, SUCCESS, Plan, Receipt, Shard, make_plan, make_shards, settle
from pigeonhole.scoring.progress import Progress
from pigeonhole.scoring.source import Wanted, find_files, scan

USAGE = "usage: score bundle=URL input=GLOB_OR_URL output=URL text=COLUMN [key=value …]"


@dataclass(frozen=True)
class Summary:
    """Of a finished job; what `_SUCCESS` says."""

    rows: int
    scored: int
    bad: int
    shards: int
    labels: dict[str, int]


def run(arguments: list[str]) -> dict[str, Any] | None:
    if {"-h", "--help"} & set(arguments):
        print("\n".join([USAGE, "", *key_lines(ScoreConfig)]))
        return None
    return score(read_options(ScoreConfig, arguments))


def score(config: ScoreConfig) -> dict[str, Any]:
    """Score what is not scored yet. Raises UserError before anything is written, RunError for too many bad rows."""
    began = time.monotonic()
    output = storage.to_url(config.output)
    bundle = open_bundle(config.bundle)
    Classifier.open(bundle, config.precision)  # refused here in one line, and not later by each of the actors
    source = scan(find_files(config.input), Wanted(config.text, config.id, config.max_chars))
    plan = settle(output, make_plan(config, bundle, source))
    done = read_receipts(output)
    _refuse_too_many_bad(config, plan, done)
    scanned = time.monotonic()
    shards = [shard for shard in make_shards(source, plan.options.shard_rows) if shard.number not in done]
    if done:
        say(f"{len(done):,} of {plan.shards:,} shards are done already")
    speed: dict[str, Any] = {"rows_per_second": None, "cost_usd": 0.0, "seconds": {"scan": round(scanned - began, 2)}}
    if shards:
        job = Job(output, storage.to_url(config.bundle), plan, without_files(source))
        speed = _score_shards(config, job, shards, done, speed["seconds"])
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
    }


def _score_shards(
    config: ScoreConfig, job: Job, shards: list[Shard], done: dict[int, Receipt], seconds: dict[str, float]
) -> dict[str, Any]:
    """Fills `done`."""
    began = time.monotonic()
    rows = job.plan.rows
    finished = rows - sum(shard.rows for shard in shards)
    with Cluster(config.ray_address, config.actors) as cluster:
        say(f"{rows - finished:,} of {rows:,} rows in {len(shards):,} shards, {cluster.actors} actors")
        progress = Progress(rows, finished, cluster.actors * config.core_hour_usd)
        for receipt, took_s in cluster.score(job, shards):
            done[receipt.shard] = receipt
            progress.add(receipt.rows + receipt.bad, receipt.bad, took_s)
            _refuse_too_many_bad(config, job.plan, done)
        return {
            "actors": cluster.actors,
            "rows_per_second": round(progress.rows_per_second, 1),
            "cost_usd": round(progress.cost_usd, 6),
            "seconds": {
                **seconds,
                "start": round(time.monotonic() - began - progress.seconds, 2),
                "score": round(progress.seconds, 2),
            },
        }


def _refuse_too_many_bad(config: ScoreConfig, plan: Plan, done: dict[int, Receipt]) -> None:
    bad = sum(receipt.bad for receipt in done.values())
    if bad > config.max_bad_share * plan.rows:
        raise RunError(
            f"{bad:,} of {plan.rows:,} rows are bad, max_bad_share is {config.max_bad_share:g}; "
            f"{storage.join(storage.to_url(config.output), ERRORS)} says which, and a higher max_bad_share goes on from here"
        )


def read_receipts(output: str) -> dict[int, Receipt]:
    """Of the shards that are done, whoever did them."""
    folder = storage.join(output, RECEIPTS)
    urls = [storage.join(folder, name) for name in storage.list_files(folder) if name.endswith(".json") and name[0] != "."]
    with ThreadPoolExecutor(16) as pool:
        found = [msgspec.json.decode(data, type=Receipt) for data in pool.map(storage.read, urls)]
    return {receipt.shard: receipt for receipt in found}


def _finish(output: str, plan: Plan, done: dict[int, Receipt]) -> Summary:
    labels: Counter[str] = Counter()
    for receipt in done.values():
        labels.update(receipt.labels)
    scored = sum(receipt.rows for receipt in done.values())
    bad = sum(receipt.bad for receipt in done.values())
    if len(done) != plan.shards or scored + bad != plan.rows:
        raise RunError(f"{output}: {len(done)} of {plan.shards} shards and {scored + bad} of {plan.rows} rows are there")
    summary = Summary(plan.rows, scored, bad, plan.shards, dict(sorted(labels.items())))
    for name in storage.list_files(output):
        if name.rpartition("/")[2].startswith(".") and name.endswith(".tmp"):  # what a killed worker was writing
            storage.delete(storage.join(output, name))
    storage.create(storage.join(output, SUCCESS), msgspec.json.encode(summary))
    return summary


main = command(run)
