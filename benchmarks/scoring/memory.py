"""What a scoring job takes of memory, over the size of its input: the proportional set sizes of all its processes, added up.

    uv run --isolated --group score python -m benchmarks.scoring.memory bundle=URL [rows=5000,50000] [characters=60] [key=value …]

`bundle=keywords` makes a bundle of a few kilobytes, which answers fast enough for millions of rows. Driver, readers, actors and
all that Ray starts are counted, each shared page once. `characters` is the length of a text; other keys go to `score`.
Prints one JSON object: for each size the peak, and the mean of the last quarter of the job, in megabytes, with the processes at
the peak.
"""

import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.scoring.chaos import SCORE, WORDS
from benchmarks.scoring.processes import family_of, memory_mb, title_of
from tests.keyword_bundle import keyword_bundle

from pigeonhole.bundle import open_bundle
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting, split_own
from pigeonhole.scoring.config import ScoreConfig

EVERY_S = 0.5


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL, or keywords")
    rows: str = setting("5000,50000", "of each table, comma between them")
    characters: int = setting(60, "of a text", ge=6)


@dataclass(frozen=True)
class Footprint:
    rows: int
    input_mb: float
    seconds: float
    peak_mb: float
    last_quarter_mb: float
    at_peak: dict[str, float]


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    own, more = split_own(Options, arguments)
    options = read_options(Options, own)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    sizes = _sizes(options.rows)
    own_words = ["bundle=URL", "input=FILE", "output=FOLDER", "text=text"]
    read_options(ScoreConfig, [*own_words, *more])  # before a table is written, which may take minutes
    if options.bundle != "keywords":
        open_bundle(options.bundle)
    with tempfile.TemporaryDirectory() as scratch:
        url = keyword_bundle(Path(scratch, "keywords"), "1").url if options.bundle == "keywords" else options.bundle
        return {"footprints": [asdict(_measure(size, options.characters, [f"bundle={url}", *more])) for size in sizes]}


def _sizes(told: str) -> list[int]:
    if not all(size.isascii() and size.isdigit() and int(size) for size in told.split(",")):
        raise ConfigError(f"rows={told}: expected whole numbers above 0, comma between them")
    return [int(size) for size in told.split(",")]


def _measure(rows: int, characters: int, more: Sequence[str]) -> Footprint:
    with tempfile.TemporaryDirectory() as scratch:
        table, output = Path(scratch, "in.csv"), Path(scratch, "out")
        _write_table(table, rows, characters)
        words = [*more, f"input={table}", f"output={output}", "text=text"]
        began = time.monotonic()
        samples: list[dict[str, float]] = []
        with subprocess.Popen([*SCORE, *words], stdout=subprocess.DEVNULL, stderr=sys.stderr) as process:
            while process.poll() is None:
                samples.append({f"{pid} {title_of(pid)[:60]}": memory_mb(pid) for pid in family_of(process.pid)})
                time.sleep(EVERY_S)
        if process.returncode:
            raise RunError(f"score ended with {process.returncode}")
        totals = [sum(sample.values()) for sample in samples]
        peak = samples[totals.index(max(totals))]
        found = Footprint(
            rows=rows,
            input_mb=round(table.stat().st_size / 1e6, 1),
            seconds=round(time.monotonic() - began, 1),
            peak_mb=round(max(totals)),
            last_quarter_mb=round(last_quarter(totals)),
            at_peak={title: round(size) for title, size in sorted(peak.items(), key=lambda pair: -pair[1]) if size >= 1},
        )
    say(f"{rows:,} rows of {characters} characters: peak {found.peak_mb} MB, at the end {found.last_quarter_mb} MB")
    return found


def last_quarter(totals: Sequence[float]) -> float:
    """Their mean, without the very last one, at which the job was ending."""
    begins = min(len(totals) * 3 // 4, len(totals) - 2)
    return statistics.fmean(totals[max(0, begins) : -1] or totals)


def _write_table(path: Path, rows: int, characters: int) -> None:
    draw = random.Random(1)
    with path.open("w", encoding="utf-8") as stream:
        stream.write("id,text\n")
        for number in range(rows):
            stream.write(f"{number},{' '.join(draw.choices(WORDS, k=max(1, characters // 6)))}\n")


if __name__ == "__main__":
    command(run)()
