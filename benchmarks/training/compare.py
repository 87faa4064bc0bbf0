"""Our training beside Hugging Face's Trainer: `uv run python -m benchmarks.training.compare data=FILE text=COLUMN label=COLUMN`.

Contenders, one process each, in turn: the Trainer with the defaults of the public example (pad to 128, batches of 8), the Trainer
with dynamic padding, length grouping and batches of 32, in fp32 and in bf16, and ours; same encoder, rows, epochs and threads.
Prints one JSON object with texts a CPU-second, the ratios, the machine's fp32 matmul ceiling with the share of it that ours
reaches, and, with epochs=3 or so and no rows=, the test accuracy after every epoch and the time to accuracy=. The share counts as
useful only what products over real tokens take.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.training.task import Task, Told

from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.read import Row
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting
from pigeonhole.training.config import ModelConfig

ROOT = Path(__file__).resolve().parents[2]
CONTENDERS = {
    "trainer_default": ["benchmarks.training.hf_trainer", "default"],
    "trainer_tuned": ["benchmarks.training.hf_trainer", "tuned"],
    "trainer_tuned_bf16": ["benchmarks.training.hf_trainer", "tuned", "bf16"],
    "ours": ["benchmarks.training.ours"],
    "ours_fp32": ["benchmarks.training.ours", "precision=fp32"],
    "ours_bf16": ["benchmarks.training.ours", "precision=bf16"],
    "ours_frozen": ["benchmarks.training.ours", "frozen_layers=3"],
}
CEILING_S = 2.0


@dataclass(frozen=True)
class Options:
    data: str = setting("package://pigeonhole/dataset/tickets/tickets.csv", "labelled rows")
    text: str = setting("text", "column of the texts")
    label: str = setting("label", "column of the labels")
    rows: int = setting(0, "training rows at most (one of every label at least), to measure speed alone; 0: all", ge=0)
    epochs: int = setting(1, "passes over them", ge=1, le=100)
    accuracy: float = setting(0.0, "the test accuracy that the time is taken to; 0: test rows are not looked at", ge=0, le=1)
    seed: int = setting(0, "of the training", ge=0)
    threads: int = setting(os.cpu_count() or 1, "CPU threads of each contender", ge=1)
    contenders: str = setting("trainer_default,trainer_tuned,ours", f"some of {', '.join(CONTENDERS)}, comma between them")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    contenders = options.contenders.split(",")
    if set(contenders) - set(CONTENDERS):
        raise ConfigError(f"contenders={options.contenders}: expected some of {', '.join(CONTENDERS)}, comma between them")
    ceiling = matmul_ceiling(options.threads)
    say(f"fp32 matmul ceiling with {options.threads} threads: {ceiling:.0f} GFLOP/s")
    told = {name: contend(name, make_task(options)) for name in contenders}
    return {
        "options": msgspec.to_builtins(options),
        "ceiling_gflops": round(ceiling, 1),
        "contenders": {name: summarise(found, options, ceiling) for name, found in told.items()},
        "ours_times": {
            name: {
                "texts_a_cpu_s": round(rate(told["ours"]) / rate(found), 2),
                "end_to_end": round(found.wall_s / told["ours"].wall_s, 2),
            }
            for name, found in told.items()
            if "ours" in told
        },
    }


def make_task(options: Options) -> Task:
    dataset = load_dataset(DataConfig(path=options.data, text=options.text, label=options.label))
    train = some_of_every_label(dataset.split.train)[: options.rows or None]
    test = dataset.split.test if options.accuracy else []
    ids = {label: number for number, label in enumerate(dataset.labels)}
    from pigeonhole.training.pretrained import locate

    return Task(
        pretrained=locate(ModelConfig().pretrained, None).source,
        texts=[row.text for row in train],
        label_ids=[ids[row.label] for row in train],
        test_texts=[row.text for row in test],
        test_label_ids=[ids[row.label] for row in test],
        labels=list(dataset.labels),
        epochs=options.epochs,
        seed=options.seed,
        threads=options.threads,
        max_length=128,
    )


def some_of_every_label(rows: Sequence[Row]) -> list[Row]:
    """The first of each label, then the second ones, and so on: the head is fitted to all labels, however few rows are used."""
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        seen[row.label] += 1
        turns.append(seen[row.label])
    return [rows[place] for place in np.argsort(turns, kind="stable")]


def contend(name: str, task: Task) -> Told:
    module, *keys = CONTENDERS[name]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "task.json"
        file.write_bytes(msgspec.json.encode(task))
        done = subprocess.run(
            [sys.executable, "-m", module, str(file), *keys], cwd=ROOT, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise RunError(f"{name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found = msgspec.json.decode(done.stdout.splitlines()[-1], type=Told)
    say(f"{name}: {rate(found):.1f} texts a CPU-second, {found.train_wall_s:.1f} s of training, {found.wall_s:.1f} s in all")
    return found


def rate(found: Told) -> float:
    return found.texts / found.train_cpu_s


def summarise(found: Told, options: Options, ceiling: float) -> dict[str, Any]:
    reached = [seconds for seconds, accuracy in found.accuracies if options.accuracy and accuracy >= options.accuracy]
    summary: dict[str, Any] = {
        "texts_a_cpu_s": round(rate(found), 2),
        "train_cpu_s": round(found.train_cpu_s, 1),
        "train_wall_s": round(found.train_wall_s, 1),
        "wall_s": round(found.wall_s, 1),
        "accuracies": [(round(seconds, 1), round(accuracy, 4)) for seconds, accuracy in found.accuracies],
        "seconds_to_accuracy": round(reached[0], 1) if reached else None,
    }
    if found.flops_a_text:
        gflops = found.flops_a_text * found.texts / found.train_wall_s / 1e9
        summary |= {"gflop_a_text": round(found.flops_a_text / 1e9, 3), "ceiling_share": round(gflops / ceiling, 3)}
    return summary


def matmul_ceiling(threads: int) -> float:
    """GFLOP/s of the largest product that one would hope for, (2048, 1536) by (1536, 1536), in fp32; the best of a few tries."""
    import torch

    torch.set_num_threads(threads)
    left, right = torch.randn(2048, 1536), torch.randn(1536, 1536)
    product = torch.empty(2048, 1536)
    flops, best = 2 * 2048 * 1536 * 1536, np.inf
    end = time.monotonic() + CEILING_S
    while time.monotonic() < end:
        began = time.perf_counter()
        torch.mm(left, right, out=product)
        best = min(best, time.perf_counter() - began)
    return float(flops / best / 1e9)


main = command(run)

if __name__ == "__main__":
    main()
