"""Texts a second: `uv run score` beside what ONNX Runtime alone can do, a plain multiprocessing pool and transformers.pipeline.

    uv run --isolated --group score python -m benchmarks.scoring.speed bundle=URL texts=FILE.csv [column=text] [rows=200000]
        [what=ceiling,one,two,ceiling,pool,pipeline] [twin=FOLDER]

The texts are the file's rows drawn at random, with repetition. Measured in the order of `what`:

ceiling   the session's runs alone, one process, one thread: ids made beforehand, sorted by length, no answer decoded (a tenth)
one, two  the command with one and with two actors; start-up is told apart
pool      what one would write by hand: two processes, chunks of 1,024 texts, sorted, batches of 32 padded (a fifth)
pipeline  transformers.pipeline over the run's `save_pretrained` twin, batch_size=32, all cores (a hundredth)

Prints one JSON object.
"""

import csv
import itertools
import json
import multiprocessing
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from benchmarks.scoring.chaos import SCORE
from benchmarks.scoring.processes import cpu_seconds, scorers_of
from benchmarks.scoring.same_answers import column_of
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pigeonhole.bundle import TOKENIZER, Bundle, open_bundle
from pigeonhole.classifier import BATCH_TOKENS, LAYOUTS, Layout, Padded, session_options
from pigeonhole.command import command, say, with_help
from pigeonhole.errors import ConfigError, RunError
from pigeonhole.options import read_options, setting

Ids = list[list[int]]
WHAT = {"ceiling", "one", "two", "pool", "pipeline"}
_opened: list["Session"] = []  # of a worker of the pool, which has no other place for it


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    texts: str | None = setting(None, "a CSV file")
    column: str = setting("text", "of the file")
    rows: int = setting(200_000, "texts that are drawn from it", ge=1000)
    what: str = setting("ceiling,one,two,ceiling,pool", "what is measured, in this order")
    twin: str | None = setting(None, "for the pipeline: the folder `model` of the run that made the bundle")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None or options.texts is None:
        raise ConfigError("bundle=URL and texts=FILE.csv are needed; see --help")
    what, twin = options.what.split(","), options.twin or ""
    if set(what) - WHAT:
        raise ConfigError(f"what={options.what}: expected some of {', '.join(sorted(WHAT))}, comma between them")
    if "pipeline" in what and not twin:
        raise ConfigError("twin=FOLDER is needed for the pipeline: the folder `model` of the run that made the bundle")
    texts = random.Random(0).choices(column_of(options.texts, options.column), k=options.rows)
    bundle = open_bundle(options.bundle)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "ceiling": lambda: _ceiling(bundle, texts[: len(texts) // 10]),
        "one": lambda: _score(bundle, texts, 1),
        "two": lambda: _score(bundle, texts, 2),
        "pool": lambda: _pool(bundle, texts[: len(texts) // 5]),
        "pipeline": lambda: _pipeline(twin, texts[: len(texts) // 100]),
    }
    measured = []
    for name in what:
        measured.append({"what": name, **measures[name]()})
        say(str(measured[-1]))
    return {"measured": measured}


def _ceiling(bundle: Bundle, texts: Sequence[str]) -> dict[str, Any]:
    model = Session(bundle)
    batches = list(_equal_widths(sorted(model.ids(texts), key=len), model.layout))
    for batch in batches[:: -(-len(batches) // 20)]:
        model.logits(batch)  # warm: each shape is laid out once
    began, cpu = time.perf_counter(), time.process_time()
    for batch in batches:
        model.logits(batch)
    return _speed(len(texts), time.perf_counter() - began) | {
        "rows_per_cpu_second": round(len(texts) / (time.process_time() - cpu))
    }


class Session:
    """A tokenizer and an ONNX Runtime session on one thread; of the classifier, only how its graph wants the tokens laid out."""

    def __init__(self, bundle: Bundle) -> None:
        model = str(bundle.path(bundle.manifest.models[bundle.manifest.served]))
        options = session_options(threads=1, sums_fit=bundle.manifest.int8_sums_fit)
        self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.layout = LAYOUTS[frozenset(node.name for node in self._session.get_inputs())]
        self._tokenizer = Tokenizer.from_file(str(bundle.path(TOKENIZER)))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(bundle.manifest.max_length)

    def ids(self, texts: Sequence[str]) -> Ids:
        return [found.ids for found in self._tokenizer.encode_batch_fast(list(texts))]

    def logits(self, ids: Ids) -> NDArray[np.float32]:
        """(b, c); shorter texts are padded where the graph knows no better."""
        longest = max(map(len, ids))
        if not isinstance(self.layout, Padded):
            return np.asarray(self._session.run(["logits"], dict(self.layout.inputs(ids, self.layout.width(longest))))[0])
        input_ids = np.array([row + [0] * (longest - len(row)) for row in ids], np.int64)  # (b, t)
        mask = np.array([[1] * len(row) + [0] * (longest - len(row)) for row in ids], np.int64)  # (b, t)
        return np.asarray(self._session.run(["logits"], {"input_ids": input_ids, "attention_mask": mask})[0])


def _equal_widths(rows: Ids, layout: Layout) -> Iterator[Ids]:
    batch: Ids = []
    tokens = 0
    for row in rows:
        tokens += len(row)
        if batch and (layout.width(len(batch[0])) != layout.width(len(row)) or tokens > BATCH_TOKENS):
            yield batch
            batch, tokens = [], len(row)
        batch.append(row)
    yield batch


def _score(bundle: Bundle, texts: Sequence[str], actors: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        table, output = Path(scratch, "in.csv"), Path(scratch, "out")
        with table.open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows([["text"], *([text] for text in texts)])
        words = [f"bundle={bundle.url}", f"input={table}", f"output={output}", f"actors={actors}"]
        samples: list[tuple[int, float]] = []  # parts that are there, CPU-seconds of the actors
        with subprocess.Popen([*SCORE, *words], stdout=subprocess.PIPE) as process:
            while process.poll() is None:
                parts = len(list(output.glob("part-*")))
                if parts >= actors:  # each has opened its model
                    samples.append((parts, sum(map(cpu_seconds, scorers_of(process.pid)))))
                time.sleep(0.2)
            printed = process.stdout.read() if process.stdout else b""
        if process.returncode:
            raise RunError(f"score ended with {process.returncode}")
    found = json.loads(printed)
    return {
        "rows": found["rows"],
        "rows_per_second": round(found["rows_per_second"]),
        "seconds": found["seconds"],
        "rows_per_cpu_second": round(parts_a_cpu_second(samples) * found["rows"] / found["shards"]),
    }


def parts_a_cpu_second(samples: Sequence[tuple[int, float]]) -> float:
    """Parts a CPU-second, from the moment that a part appeared to the last moment that one did. Raises RunError."""
    steps = [after for before, after in itertools.pairwise(samples) if after[0] > before[0] and after[1] > before[1]]
    if len(steps) < 2:
        raise RunError("the job was done before it could be measured; draw more texts with rows=")
    (first, began), (last, ended) = steps[0], steps[-1]
    return (last - first) / (ended - began)


def _pool(bundle: Bundle, texts: Sequence[str]) -> dict[str, Any]:
    chunks = [texts[start : start + 1024] for start in range(0, len(texts), 1024)]
    with multiprocessing.get_context("spawn").Pool(2, _open, (bundle.url,)) as pool:
        pool.map(_labels, [texts[:256]] * 8)  # both have opened their session
        began = time.perf_counter()
        answered = sum(len(labels) for labels in pool.imap_unordered(_labels, chunks))
        return _speed(answered, time.perf_counter() - began)


def _open(url: str) -> None:
    _opened.append(Session(open_bundle(url)))


def _labels(texts: Sequence[str]) -> list[int]:
    [session] = _opened
    ids = sorted(session.ids(texts), key=len)
    return [int(label) for start in range(0, len(ids), 32) for label in session.logits(ids[start : start + 32]).argmax(axis=1)]


def _pipeline(twin: str, texts: Sequence[str]) -> dict[str, Any]:
    from transformers import pipeline  # seconds to import, and only this measure needs it

    classify = pipeline("text-classification", model=twin, device="cpu")
    classify(list(texts[:32]), batch_size=32)
    began = time.perf_counter()
    answered = len(classify(list(texts), batch_size=32))
    return _speed(answered, time.perf_counter() - began)


def _speed(rows: int, seconds: float) -> dict[str, Any]:
    return {"rows": rows, "rows_per_second": round(rows / seconds), "seconds": round(seconds, 2)}


if __name__ == "__main__":
    command(run)()
