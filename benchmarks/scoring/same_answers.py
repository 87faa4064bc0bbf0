"""A thousand real texts of all lengths, by `uv run score` and by the HTTP API: labels, scores and probabilities bit for bit.

    uv run --isolated --group score python -m benchmarks.scoring.same_answers bundle=URL texts=FILE.csv [column=text] [count=1000]

Every third text is one row of the file; the others are rows in a row, up to the 8,192 characters that both take. The API is asked
by POST /predict, in requests of 1 to 64 texts. Prints one JSON object; exit code 3 where a bit differs.
"""

import csv
import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
from benchmarks.scoring.chaos import SCORE
from benchmarks.serving.served import served

from pigeonhole.command import command, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.scoring.config import MAX_CHARS

FIELDS = ["label", "score", "decision", "truncated", "probabilities"]
Answer = dict[str, Any]


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    texts: str | None = setting(None, "a CSV file")
    column: str = setting("text", "of the file")
    count: int = setting(1000, "texts that are made of its rows", ge=1)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None or options.texts is None:
        raise ConfigError("bundle=URL and texts=FILE.csv are needed; see --help")
    texts = of_all_lengths(column_of(options.texts, options.column), options.count)
    lengths = sorted(map(len, texts))
    with tempfile.TemporaryDirectory() as scratch:
        scored = score(options.bundle, texts, Path(scratch))
        asked = ask(options.bundle, texts, Path(scratch))
    differing = [number for number, pair in enumerate(zip(scored, asked, strict=True)) if pair[0] != pair[1]]
    if differing:
        raise RunError(f"{len(differing)} of {len(texts)} texts have other answers, the first is number {differing[0]}")
    characters = {"least": lengths[0], "median": lengths[len(lengths) // 2], "most": lengths[-1]}
    return {"texts": len(texts), "characters": characters, "identical": True}


def column_of(file: str, column: str) -> list[str]:
    """Raises ConfigError where the file cannot be read, or has no such column, or no row."""
    try:
        with open(file, encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"texts={file}: no CSV file that can be read ({error}); give one in UTF-8 with a header") from error
    if not rows or column not in rows[0]:
        has = ", ".join(rows[0]) if rows else "no row"
        raise ConfigError(f"column={column}: expected a column of {file}, which has {has}")
    return [row[column] for row in rows]


def of_all_lengths(rows: Sequence[str], count: int) -> list[str]:
    """Real texts, short and long: one row, or as many rows as fit into a length drawn evenly on a logarithmic scale."""
    draw = random.Random(0)
    texts = []
    for number in range(count):
        place = draw.randrange(len(rows))
        text = rows[place]
        characters = 0 if number % 3 == 0 else int(50 * (MAX_CHARS / 50) ** draw.random())
        while len(longer := f"{text} {rows[place := (place + 1) % len(rows)]}") <= characters:
            text = longer
        texts.append(text)
    return texts


def score(bundle: str, texts: Sequence[str], folder: Path) -> list[Answer]:
    """By the command, from a JSONL file."""
    with open(folder / "texts.jsonl", "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    words = [f"bundle={bundle}", f"input={folder / 'texts.jsonl'}", f"output={folder / 'scored'}", "probabilities=true"]
    subprocess.run([*SCORE, *words], check=True, stdout=subprocess.DEVNULL)
    return answers_of(folder / "scored")


def answers_of(output: Path) -> list[Answer]:
    """Of a finished job that was asked for probabilities."""
    table = pq.read_table(output)
    labels = json.loads(table.schema.metadata[b"pigeonhole.labels"])
    rows = table.select(FIELDS).to_pylist()
    return [row | {"probabilities": dict(zip(labels, row["probabilities"], strict=True))} for row in rows]


def ask(bundle: str, texts: Sequence[str], folder: Path) -> list[Answer]:
    """By the real service, over HTTP, in requests of many sizes."""
    draw = random.Random(1)
    answers: list[Answer] = []
    patience = {"PIGEONHOLE_DEADLINE_S": "300"}  # 64 long texts take seconds on a busy core
    with (
        served(folder, PIGEONHOLE_BUNDLE=bundle, **patience) as service,
        httpx.Client(base_url=f"http://127.0.0.1:{service.port}", timeout=300) as http,
    ):
        while len(answers) < len(texts):
            some = texts[len(answers) : len(answers) + draw.choice((1, 2, 5, 16, 64))]
            found = http.post("/predict", json={"texts": some}).raise_for_status().json()["predictions"]
            answers += [{name: answer[name] for name in FIELDS} for answer in found]
    return answers


if __name__ == "__main__":
    command(run)()
