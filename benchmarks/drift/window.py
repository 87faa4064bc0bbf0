"""How long one drift run takes over a window of many predictions, and how much memory.

    uv run python benchmarks/drift/window.py bundle=URL [records=1000000] [compacted=no|yes]

Writes a log of so many records (the bundle's held-out answers, again and again, over 24 hours, 10,000 records an object, as the
shipper writes them; or one Parquet object an hour, as log-compact does), then lets a process of its own do what POST /runs does.
Prints one JSON object; what writing the log took is not part of it.
"""

import gzip
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from pigeonhole import storage
from pigeonhole.bundle import REFERENCE, open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.drift.compact import compact_log
from pigeonhole.drift.service import Span, Watch
from pigeonhole.drift.settings import Settings
from pigeonhole.errors import ConfigError
from pigeonhole.options import read_options, setting
from pigeonhole.prediction_log import Features, Record, new_id, sketch
from pigeonhole.prediction_log.record import encode_line, partition_of

START = datetime(2026, 3, 1, tzinfo=UTC)
IN_OBJECT = 10_000


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    records: int = setting(1_000_000, "predictions of the day", ge=1)
    compacted: str = setting("no", "yes: one Parquet object an hour, as log-compact leaves them", choices=("no", "yes"))
    log: str | None = setting(None, "a log that this wrote before: it is measured, in this process")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    if options.log is not None:
        return measure(options.bundle, options.log)
    count = options.records
    with tempfile.TemporaryDirectory() as folder:
        write_log(folder, options.bundle, count)
        if options.compacted == "yes":
            compact_log(folder, START + timedelta(days=2))
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        say(f"{count} records in {size / 1e6:.0f} MB; now the run")
        child = [sys.executable, __file__, f"bundle={options.bundle}", f"log={folder}"]
        found: dict[str, Any] = json.loads(subprocess.run(child, stdout=subprocess.PIPE, check=True).stdout)
    return {"records": count, "compacted": options.compacted, "log_mb": round(size / 1e6), **found}


def measure(bundle: str, log: str) -> dict[str, Any]:
    """In a fresh process, so that its peak memory is that of the run."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as reports:
        settings = Settings(bundle=bundle, log=log, reports=reports, draw="no")
        report = Watch(settings).run(Span(start=START, end=START + timedelta(days=1)))
    return {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3),
        "rows": report["rows"],
        "verdict": report["verdict"],
        "load_average": os.getloadavg()[0],
    }


def write_log(folder: str, url: str, count: int) -> None:
    records = _records(url, count)
    for number in itertools.count():
        some = list(itertools.islice(records, IN_OBJECT))
        if not some:
            return
        lines: dict[str, list[bytes]] = {}
        for record in some:
            lines.setdefault(partition_of(record.at), []).append(encode_line(record))
        for partition, of_hour in lines.items():
            data = gzip.compress(b"".join(of_hour), compresslevel=1)
            storage.write(f"{folder}/predictions/{partition}/{number:06d}.jsonl.gz", data)


def _records(url: str, count: int) -> Iterator[Record]:
    bundle = open_bundle(url)
    manifest = bundle.manifest
    rows = pq.read_table(bundle.path(REFERENCE)).to_pylist()
    for number, row in zip(range(count), itertools.cycle(rows), strict=False):
        features = {name: row[name] for name in ("n_chars", "n_words", "n_tokens", "unknown_tokens", "truncated", "max_logit")}
        if "sketch" not in row:
            row["sketch"] = sketch(np.array(row["embedding"])[None, :])[0].tolist()
        yield Record(
            prediction_id=new_id(),
            at=START + timedelta(days=1) * (number / count),
            request_id="r",
            model=manifest.name,
            version=manifest.version,
            text=None,
            text_policy="none",
            features=Features(**features, sketch=row["sketch"]),
            label=row["label"],
            score=row["score"],
            probabilities=dict(zip(manifest.labels, row["probabilities"], strict=True)),
            decision="accept",
            latency_ms=3.0,
        )


if __name__ == "__main__":
    command(run)()
