"""What the gate wants to know of candidate and production, measured on the same texts, in one process, side by side."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from pigeonhole.bundle import Bundle
from pigeonhole.classifier import Classifier
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.dataset.read import Row
from pigeonhole.evaluation.behaviour import measure_behaviour
from pigeonhole.evaluation.labelled import Labelled, thresholds_of
from pigeonhole.evaluation.score import for_many, predict_rows, time_each
from pigeonhole.promotion.gate import Answers

TIMED = 100  # texts, one at a time


@dataclass(frozen=True)
class Probes:
    """Texts beside the frozen rows; either may be empty."""

    minimum: Sequence[Row]
    out_of_scope: Sequence[str]


def measure(bundles: Sequence[Bundle], rows: Labelled, probes: Probes, threads: int, seed: int) -> list[Answers]:
    """One Answers a bundle, in their order."""
    classifiers = [for_many(Classifier.open(bundle, threads=threads)) for bundle in bundles]
    found = [_answer(*pair, rows, probes, seed) for pair in zip(bundles, classifiers, strict=True)]
    times = time_each(classifiers, rows.texts[:TIMED])
    return [replace(answers, latencies_ms=of_one) for answers, of_one in zip(found, times, strict=True)]


def _answer(bundle: Bundle, classifier: Classifier, rows: Labelled, probes: Probes, seed: int) -> Answers:
    manifest = bundle.manifest

    def labels_of(texts: Sequence[str]) -> list[str]:
        return [join_labels(said.labels) for said in classifier.predict_once(texts)]

    decisions = [said.decision for said in classifier.predict(probes.out_of_scope)]
    return Answers(
        version=manifest.version,
        rows=hashlib.sha256(msgspec.json.encode([(row.text, row.label) for row in rows.rows])).hexdigest(),
        labels=manifest.labels,
        probabilities=predict_rows(classifier, rows.texts, f"score {manifest.version}"),
        thresholds=thresholds_of(manifest),
        size_bytes=manifest.size_bytes(manifest.served),
        refused=np.array([decision != "accept" for decision in decisions]) if decisions else None,
        behaviour=measure_behaviour(labels_of, rows.texts, probes.minimum, seed),
    )
