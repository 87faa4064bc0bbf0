"""What is compared: the reference rows of a bundle, and a sample of what that version answered in a span of time."""

import io
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyarrow import ArrowException

from pigeonhole.bundle import REFERENCE, Task, read_file, read_manifest
from pigeonhole.drift.compact import compacted_lines
from pigeonhole.drift.detectors import MAX_ROWS, Rows
from pigeonhole.drift.settings import Settings
from pigeonhole.errors import BundleError, RegistryError
from pigeonhole.prediction_log import Record, read_window, sketch
from pigeonhole.prediction_log.sketch import SIZE
from pigeonhole.registry import Registry

FEATURES = {  # column of reference.parquet -> field of Rows
    "score": "scores",
    "max_logit": "max_logits",
    "n_chars": "n_chars",
    "n_words": "n_words",
    "n_tokens": "n_tokens",
    "unknown_tokens": "unknown_tokens",
}


MISSING = [float("nan")] * SIZE


@dataclass(frozen=True)
class Reference:
    """Held-out answers of one version, and how many of them were right."""

    model: str
    version: str
    labels: tuple[str, ...]
    rows: Rows
    accuracy: float
    task: Task = "single_label"


@dataclass(frozen=True)
class Sample:
    """At most MAX_ROWS records of one version, drawn evenly from `found` of them, and what else the window met."""

    rows: Rows
    found: int
    other_versions: int  # records of another model or version: never mixed in
    unknown_labels: int  # records with a label that the version does not have
    counts: dict[str, Any]  # of the log's reader: duplicates, torn lines, ...


def live_url(settings: Settings) -> str:
    """The bundle of PIGEONHOLE_BUNDLE, else the production version of the registry, as serving has it."""
    if settings.bundle:
        return settings.bundle
    registry = Registry(settings.registry)
    return registry.resolve(settings.model or promoted_last(registry), "production")


def promoted_last(registry: Registry) -> str:
    """Raises RegistryError where no model is in production."""
    promoted = registry.in_production()
    if not promoted:
        raise RegistryError(f"{registry.url}: no model is in production here; run `uv run train experiment=fast` first")
    return promoted[0]


def read_reference(url: str) -> Reference:
    """Of a bundle, whose model stays where it is.

    Raises BundleError for one without a reference, or with one that lacks a feature of the log's records.
    """
    manifest = read_manifest(url)
    labels, task = manifest.labels, manifest.task
    given, right = ("labels", "true_labels") if task == "multi_label" else ("label", "true_label")
    columns = [given, right, "embedding", *FEATURES]
    if REFERENCE not in manifest.files:
        raise BundleError(f"{url}: has no {REFERENCE}; drift needs a bundle that `uv run train` sealed")
    data = read_file(url, manifest, REFERENCE)
    try:
        missing = sorted(set(columns) - set(pq.read_schema(io.BytesIO(data)).names))
        table = None if missing else pq.read_table(io.BytesIO(data), columns=columns)
    except (ArrowException, OSError) as error:
        raise BundleError(f"{url}: {REFERENCE} cannot be read: {error}") from error
    if table is None:
        raise BundleError(f"{url}: {REFERENCE} has no column {', '.join(missing)}; train again to seal a bundle that has")
    predicted, true = (
        [frozenset((found,) if isinstance(found, str) else found) for found in table[name].to_pylist()] for name in (given, right)
    )
    rows = Rows(
        label_ids=_label_ids(labels, task, predicted),
        **{field: table[column].to_numpy() for column, field in FEATURES.items()},
        sketches=_sketches(table["embedding"].to_pylist()),
    )
    accuracy = float(np.mean([said == truth for said, truth in zip(predicted, true, strict=True)])) if predicted else 0.0
    return Reference(manifest.name, manifest.version, labels, rows, accuracy, task)


def _label_ids(labels: Sequence[str], task: Task, answers: Sequence[frozenset[str]]) -> NDArray[np.int64]:
    """(n,) places of the one label that each answer has; of a multi-label version (n, c), 1 where a label was given."""
    if task == "multi_label":
        return np.array([[label in found for label in labels] for found in answers], np.int64).reshape(-1, len(labels))
    ids = {label: number for number, label in enumerate(labels)}
    return np.array([ids[label] for (label,) in answers], np.int64)


def read_sample(log: str, start: datetime, end: datetime, reference: Reference, seed: int = 0, most: int = MAX_ROWS) -> Sample:
    """One pass over the log in constant memory but for the ids of an hour; Vitter 1985, algorithm R, draws the sample."""
    known = frozenset(reference.labels)
    draw = random.Random(seed)
    kept: list[Record] = []
    found = other_versions = unknown_labels = 0
    window = read_window(log, start, end, read_compacted=compacted_lines)
    for record in window:
        if (record.model, record.version) != (reference.model, reference.version):
            other_versions += 1
        elif not record.given <= known:
            unknown_labels += 1
        else:
            found += 1
            if found <= most:
                kept.append(_slim(record))
            elif (place := int(draw.random() * found)) < most:
                kept[place] = _slim(record)
    return Sample(_rows(kept, reference), found, other_versions, unknown_labels, asdict(window.counts))


def _slim(record: Record) -> Record:
    """Without what no detector reads and what takes the memory."""
    return msgspec.structs.replace(record, text=None, probabilities={})


def _rows(kept: Sequence[Record], reference: Reference) -> Rows:
    features = [record.features for record in kept]
    found = [each.sketch if each.sketch is not None and len(each.sketch) == SIZE else MISSING for each in features]
    return Rows(
        label_ids=_label_ids(reference.labels, reference.task, [record.given for record in kept]),
        scores=np.array([record.score for record in kept], np.float64),
        max_logits=np.array([each.max_logit for each in features], np.float64),
        n_chars=np.array([each.n_chars for each in features], np.int64),
        n_words=np.array([each.n_words for each in features], np.int64),
        n_tokens=np.array([each.n_tokens for each in features], np.int64),
        unknown_tokens=np.array([each.unknown_tokens for each in features], np.int64),
        sketches=np.array(found, np.float64).reshape(len(kept), SIZE),
    )


def _sketches(embeddings: list[list[float]]) -> NDArray[np.float64]:
    """Of the reference's embeddings, (n, SIZE)."""
    return sketch(np.array(embeddings, np.float32)) if embeddings else np.empty((0, SIZE))
