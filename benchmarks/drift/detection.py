"""How often a drift run alarms: on null windows, and on windows that really differ, by kind, dose and number of texts.

    uv run python benchmarks/drift/detection.py bundle=URL [banking77=FILE clinc150=FILE] [trials=25] [nulls=400] [out=FOLDER]

`bundle` was trained on tickets. Held-out rows (its validation and test split, 576 texts) are dealt anew for each trial: one half
is the reference, the window comes from the other, so that no text is on both sides. With the two files of labelled
rows, 600 texts of the first are the reference's world, and texts of the second are mixed into the window. Prints one JSON
object; with `out`, it is also kept there, with a picture.
"""

import io
import os
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from matplotlib.figure import Figure

from pigeonhole import storage
from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say, with_help
from pigeonhole.dataset.config import TICKETS, DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.dataset.read import read_rows
from pigeonhole.drift.detectors import DETECTORS, Rows, detect
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.score import predict_texts
from pigeonhole.metrics import wilson_interval
from pigeonhole.options import read_options, setting
from pigeonhole.prediction_log import sketch

SIZES = (25, 100, 200)
NULL_SIZE = 100
Draw = Callable[[np.random.Generator, Any, int], Rows]  # random, the held-out rows that are not reference, size


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the URL of a bundle that was trained on tickets")
    banking77: str | None = setting(None, "labelled rows: the reference's world")
    clinc150: str | None = setting(None, "other ones, whose texts are mixed into it")
    trials: int = setting(25, "windows of each kind and size", ge=1)
    nulls: int = setting(400, "windows that do not differ", ge=1)
    out: str | None = setting(None, "folder's URL for the result and a picture")


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    if (options.banking77 is None) != (options.clinc150 is None):
        raise ConfigError("banking77=FILE and clinc150=FILE go together")
    trials = options.trials
    began = time.perf_counter()
    bundle = open_bundle(options.bundle)
    classifier = Classifier.open(bundle)
    split = load_dataset(DataConfig(path=TICKETS)).split
    texts = [row.text for row in (*split.validation, *split.test)]
    held_out = _answer(classifier, texts)
    say(f"{len(texts)} held-out texts answered")
    others = {
        name: _answer(classifier, _texts(f"package://pigeonhole/dataset/tickets/{name}.csv"))
        for name in ("shifted", "out_of_scope")
    }
    typed = {dose: _answer(classifier, _mistyped(texts, dose)) for dose in (0.03, 0.1)}
    say(f"all texts answered after {time.perf_counter() - began:.0f} s")
    null = _rate(held_out, lambda random, rest, size: held_out.take(_some(random, rest, size)), NULL_SIZE, options.nulls)
    say(f"null windows: {null}")
    found: dict[str, Any] = {}
    for name, draw in _kinds(held_out, others, typed).items():
        found[name] = {str(size): _rate(held_out, draw, size, trials) for size in SIZES}
        say(f"{name}: { {size: rate['rate'] for size, rate in found[name].items()} }")
    if options.banking77 and options.clinc150:
        banking, clinc = (_answer(classifier, _some_texts(file)) for file in (options.banking77, options.clinc150))
        for dose in (0.1, 0.2, 0.5, 1.0):
            name = f"banking77, {dose:.0%} of the window from clinc150"
            found[name] = {str(size): _rate(banking, _mixed(banking, clinc, dose), size, trials) for size in SIZES}
            say(f"{name}: { {size: rate['rate'] for size, rate in found[name].items()} }")
    result = {
        "bundle": bundle.manifest.version,
        "held_out": len(texts),
        "trials": trials,
        "null": {"size": NULL_SIZE, **null},
        "kinds": found,
        "seconds": round(time.perf_counter() - began),
        "load_average": os.getloadavg()[0],
    }
    if options.out:
        storage.write(f"{options.out}/detection.json", msgspec.json.format(msgspec.json.encode(result)))
        storage.write(f"{options.out}/detection.png", draw_rates(result))
    return result


def _mixed(own: Rows, other: Rows, dose: float) -> Draw:
    def draw(random: np.random.Generator, rest: Any, size: int) -> Rows:
        foreign = round(size * dose)
        return own.take(_some(random, rest, size - foreign)).joined(other.take(_some(random, len(other), foreign)))

    return draw


def _kinds(held_out: Rows, others: dict[str, Rows], typed: dict[float, Rows]) -> dict[str, Draw]:
    def noisy(dose: float) -> Draw:
        return lambda random, rest, size: typed[dose].take(_some(random, rest, size))

    def skewed(share: float) -> Draw:
        """So large a share of the window is answered with one label, instead of an eighth; its texts may come twice."""

        def draw(random: np.random.Generator, rest: Any, size: int) -> Rows:
            of_label = rest[held_out.label_ids[rest] == 0]
            others = rest[held_out.label_ids[rest] != 0]
            many = round(size * share)
            return held_out.take(np.concatenate([random.choice(of_label, many), _some(random, others, size - many)]))

        return draw

    return {
        "shifted messages, half of the window": _mixed(held_out, others["shifted"], 0.5),
        "shifted messages, all of the window": _mixed(held_out, others["shifted"], 1.0),
        "a new intent (out of scope), a fifth of the window": _mixed(held_out, others["out_of_scope"], 0.2),
        "a new intent (out of scope), half of the window": _mixed(held_out, others["out_of_scope"], 0.5),
        "typos in 3 % of the characters": noisy(0.03),
        "typos in 10 % of the characters": noisy(0.1),
        "one label twice as frequent": skewed(0.25),
        "one label three times as frequent": skewed(0.375),
        "concept drift: the same texts mean other labels": _mixed(held_out, held_out, 0.0),
    }


def _rate(held_out: Rows, draw: Draw, size: int, trials: int) -> dict[str, Any]:
    alarms = dict.fromkeys((detector.name for detector in DETECTORS), 0)
    runs = 0
    for trial in range(trials):
        random = np.random.default_rng([trial, size])
        order = random.permutation(len(held_out))
        half = len(held_out) // 2
        drifting = [
            found.detector
            for found in detect(held_out.take(order[:half]), draw(random, order[half:], size), seed=trial)
            if found.verdict == "drift"
        ]
        runs += bool(drifting)
        for name in drifting:
            alarms[name] += 1
    interval = wilson_interval(runs, trials)
    by_detector = {name: count for name, count in alarms.items() if count}
    return {
        "alarms": runs,
        "of": trials,
        "rate": round(runs / trials, 4),
        "interval": [round(interval.low, 4), round(interval.high, 4)],
        "by_detector": by_detector,
    }


def _some(random: np.random.Generator, rows: Any, size: int) -> Any:
    return random.choice(rows, size, replace=False)


def _answer(classifier: Classifier, texts: Sequence[str]) -> Rows:
    found = predict_texts(classifier, texts)
    return Rows(
        label_ids=np.array([each.label_id for each in found], np.int64),
        scores=np.array([each.score for each in found]),
        max_logits=np.array([float(each.logits.max()) for each in found]),
        n_chars=np.array([len(text) for text in texts], np.int64),
        n_words=np.array([len(text.split()) for text in texts], np.int64),
        n_tokens=np.array([each.n_tokens for each in found], np.int64),
        unknown_tokens=np.array([each.unknown_tokens for each in found], np.int64),
        sketches=sketch(np.stack([each.embedding for each in found])),
    )


def _some_texts(path: str) -> list[str]:
    """600 of a file's texts, a seeded choice: banking77's files are sorted by label."""
    texts = _texts(path)
    return [texts[place] for place in np.random.default_rng(0).permutation(len(texts))[:600]]


def draw_rates(result: dict[str, Any]) -> bytes:
    """The share of runs that alarmed, with its interval, by number of texts: one panel a kind."""
    kinds = result["kinds"]
    figure = Figure(figsize=(12, 2.3 * -(-len(kinds) // 4)), layout="constrained")
    panels = list(figure.subplots(-(-len(kinds) // 4), 4, squeeze=False).flat)
    for empty in panels[len(kinds) :]:
        empty.set_axis_off()
    for panel, (name, rates) in zip(panels, kinds.items(), strict=False):
        sizes = [int(size) for size in rates]
        low, high = np.array([rate["interval"] for rate in rates.values()]).T
        panel.fill_between(sizes, low, high, alpha=0.25)
        panel.plot(sizes, [rate["rate"] for rate in rates.values()], marker="o", markersize=3)
        panel.axhline(0.01, color="#8a8a8a", linestyle="--", linewidth=1)
        panel.set(ylim=(-0.03, 1.03), xscale="log", xticks=sizes, xticklabels=sizes)
        panel.minorticks_off()
        panel.set_title(textwrap.fill(name, 34), fontsize=8)
    figure.supxlabel("texts in the window", fontsize=9)
    figure.supylabel("runs that alarmed", fontsize=9)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    return stream.getvalue()


def _texts(path: str) -> list[str]:
    return [row.text for row in read_rows(DataConfig(path=path))]


def _mistyped(texts: Sequence[str], share: float) -> list[str]:
    """Each character is, with this chance, swapped for a neighbouring letter of the alphabet."""
    random = np.random.default_rng(7)
    return [
        "".join(chr(ord(sign) ^ 1) if sign.isalpha() and random.random() < share else sign for sign in text) for text in texts
    ]


if __name__ == "__main__":
    command(run)()
