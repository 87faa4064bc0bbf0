"""Whether the promised precision holds on fresh rows, and what looking for a nearest neighbour costs a text.

    uv run python benchmarks/decisions/promise.py bundle=URL [targets=0.9,0.95,0.98] [repeats=100]

Validation and test rows of the bundle's own data are answered once. Then, again and again, a random half of them calibrates and
fits thresholds as `train` does, and the other half is fresh: how often is its precision the target or more, how low at worst,
and how much is accepted? Texts are timed one at a time, in turn with the rule of what is out of scope and without.
"""

import time
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from pigeonhole.bundle import open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say, with_help
from pigeonhole.decision import softmax
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation.labelled import read_own_rows
from pigeonhole.evaluation.score import predict_texts
from pigeonhole.options import read_options, setting
from pigeonhole.training.calibration import calibrate
from pigeonhole.training.decisions import fit_thresholds

TIMED = 400


@dataclass(frozen=True)
class Options:
    bundle: str | None = setting(None, "the bundle's URL")
    targets: str = setting("0.9,0.95,0.98", "precisions that are promised, comma between them")
    repeats: int = setting(100, "halves that are drawn", ge=1)


@with_help(__doc__, Options)
def run(arguments: list[str]) -> dict[str, Any]:
    options = read_options(Options, arguments)
    if options.bundle is None:
        raise ConfigError("bundle=URL is needed; see --help")
    targets = _targets(options.targets)
    bundle = open_bundle(options.bundle)
    classifier = Classifier.open(bundle)
    _, dataset = read_own_rows(bundle)
    rows = [*dataset.split.validation, *dataset.split.test]
    answers = predict_texts(classifier, [row.text for row in rows])
    logits = np.stack([found.logits for found in answers])
    label_ids = np.array([bundle.manifest.labels.index(row.label) for row in rows], np.int64)
    say(f"{len(rows)} rows, {np.mean(logits.argmax(axis=1) == label_ids):.4f} of them right")
    return {
        "bundle": bundle.url,
        "rows": len(rows),
        "repeats": options.repeats,
        "targets": _resample(logits, label_ids, targets, options.repeats),
        "milliseconds": _time(classifier, [row.text for row in rows[:TIMED]]),
    }


def _targets(told: str) -> list[float]:
    try:
        found = [float(part) for part in told.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < target < 1 for target in found):
        raise ConfigError(f"targets={told}: expected precisions between 0 and 1, comma between them")
    return found


def _resample(logits: np.ndarray, label_ids: np.ndarray, targets: list[float], repeats: int) -> dict[str, Any]:
    precisions: list[list[float]] = [[] for _ in targets]
    accepted: list[list[float]] = [[] for _ in targets]
    for repeat in range(repeats):
        fitted = np.random.default_rng(repeat).permutation(len(label_ids)) % 2 == 0
        calibration = calibrate(logits[fitted], label_ids[fitted], repeat)
        fresh = logits[~fitted].astype(np.float64)
        if calibration.vector is None:
            probabilities = softmax(fresh / calibration.temperature)
        else:
            probabilities = softmax(fresh * np.array(calibration.vector.scale) + np.array(calibration.vector.bias))
        predicted, scores = probabilities.argmax(axis=1), probabilities.max(axis=1)
        for place, target in enumerate(targets):
            promise = fit_thresholds(calibration.held_out, label_ids[fitted], target, repeat)
            taken = scores >= promise.thresholds[predicted]
            accepted[place].append(float(taken.mean()) if promise.kept else 0.0)
            if promise.kept and taken.any():
                precisions[place].append(float((predicted == label_ids[~fitted])[taken].mean()))
    return {str(target): _summary(target, *found) for target, *found in zip(targets, precisions, accepted, strict=True)}


def _summary(target: float, precisions: list[float], accepted: list[float]) -> dict[str, Any]:
    return {
        "promised_in": len(precisions) / len(accepted),
        "held_in": float(np.mean([found >= target for found in precisions])) if precisions else None,
        "precision": {"mean": float(np.mean(precisions)), "worst": min(precisions)} if precisions else None,
        "accepted": float(np.mean(accepted)),
    }


def _time(classifier: Classifier, texts: list[str]) -> dict[str, float]:
    manifest = classifier.manifest
    without = classifier.under(msgspec.structs.replace(manifest, out_of_scope=None), None)
    times: dict[str, list[float]] = {"with": [], "without": []}
    for text in texts:
        for name, asked in (("with", classifier), ("without", without)):
            began = time.perf_counter()
            asked.predict([text])
            times[name].append((time.perf_counter() - began) * 1000)
    return {f"median_{name}_rule": float(np.median(found)) for name, found in times.items()}


if __name__ == "__main__":
    command(run)()
