"""One shard: rows -> answers -> a part of the output, committed so that doing it twice leaves what doing it once leaves.

Everything is written create-only under a name that follows from the shard: bad rows, log records, the part, and last the receipt
that says it is done. A worker that dies in between leaves files that its successor makes again, byte for byte.
"""

import csv
import gzip
import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pigeonhole import storage
from pigeonhole.classifier import Classifier, Prediction
from pigeonhole.dataset.label_sets import join_labels
from pigeonhole.errors import InferenceError, RunError
from pigeonhole.prediction_log import Features, Record, kept_probabilities, sketch
from pigeonhole.prediction_log.record import encode_line, partition_of
from pigeonhole.scoring.plan import Plan, Receipt, errors_url, part_name, part_url, receipt_url
from pigeonhole.scoring.source import BadRow, Rows


@dataclass(frozen=True)
class Answered:
    """The rows of a shard that have an answer, with their texts and answers; and the bad ones."""

    table: pa.Table
    texts: list[str]
    predictions: list[Prediction]
    bad: list[BadRow]


def answer(classifier: Classifier, rows: Rows) -> Answered:
    """A text that the model has no usable answer for becomes a bad row."""
    texts = rows.texts()
    try:
        return Answered(rows.table, texts, classifier.predict(texts) if texts else [], rows.bad)
    except InferenceError:
        return _answer_one_by_one(classifier, rows, texts)


def _answer_one_by_one(classifier: Classifier, rows: Rows, texts: Sequence[str]) -> Answered:
    good: list[int] = []
    predictions: list[Prediction] = []
    bad = list(rows.bad)
    for number, (text, (url, row, line)) in enumerate(zip(texts, rows.places, strict=True)):
        try:
            predictions += classifier.predict([text])
            good.append(number)
        except InferenceError:
            bad.append(BadRow(url, row, line, None, "the model gave no usable answer"))
    return Answered(rows.table.take(pa.array(good, pa.int64())), [texts[number] for number in good], predictions, bad)


def commit(output: str, plan: Plan, shard: int, found: Answered) -> Receipt:
    """Write a shard's files. Raises RunError where other bytes than these stand under its name; StorageError."""
    if found.bad:
        _create(errors_url(output, shard), b"".join(msgspec.json.encode(bad) + b"\n" for bad in found.bad))
    ids = prediction_ids(plan, shard, len(found.texts))
    if plan.options.log and found.predictions:
        _write_log(plan, shard, found, ids)
    data = encode(plan, add_columns(plan, found, ids))
    _create(part_url(output, plan, shard), data)
    receipt = Receipt(
        shard=shard,
        rows=len(found.predictions),
        bad=len(found.bad),
        labels=dict(sorted(Counter(label for prediction in found.predictions for label in prediction.labels).items())),
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
    )
    _create(receipt_url(output, shard), msgspec.json.encode(receipt))
    return receipt


def _create(url: str, data: bytes) -> None:
    if not storage.keep(url, data):
        raise RunError(f"{url}: is there already with other bytes than this run gives; was it changed, or made by another CPU?")


def prediction_ids(plan: Plan, shard: int, count: int) -> list[str]:
    """UUIDs of version 7: the time when the job was planned, then what follows from the row, so that a retry has the same ids."""
    milliseconds = int(plan.created_at.timestamp() * 1000)
    job = plan.job
    ids = []
    for number in range(count):
        digest = int.from_bytes(hashlib.sha256(f"{job}/{shard}/{number}".encode()).digest()[:10]) & (1 << 74) - 1
        ids.append(
            str(uuid.UUID(int=milliseconds << 80 | 0x7 << 76 | (digest >> 62) << 64 | 0b10 << 62 | digest & (1 << 62) - 1))
        )
    return ids


def add_columns(plan: Plan, found: Answered, ids: Sequence[str]) -> pa.Table:
    """The input's columns, then the answers."""
    predictions, labels = found.predictions, plan.bundle.labels
    arrays: dict[str, pa.Array] = {
        "label": pa.array([each.label for each in predictions], pa.string()),
        "score": pa.array([each.score for each in predictions], pa.float64()),
        "decision": pa.array([each.decision for each in predictions], pa.string()),
        "truncated": pa.array([each.truncated for each in predictions], pa.bool_()),
    }
    if "labels" in plan.columns:
        arrays["labels"] = _label_sets(plan, predictions)
    if "top_k" in plan.columns:
        pair = pa.struct([("label", pa.string()), ("score", pa.float64())])
        arrays["top_k"] = pa.array([_ranked(each, labels, plan.options.top_k) for each in predictions], pa.list_(pair))
    if "probabilities" in plan.columns:
        arrays["probabilities"] = pa.array([each.probabilities for each in predictions], pa.list_(pa.float64()))
    if "embedding" in plan.columns:
        arrays["embedding"] = pa.array([each.embedding for each in predictions], pa.list_(pa.float32()))
    if "prediction_id" in plan.columns:
        arrays["prediction_id"] = pa.array(ids, pa.string())
    table = found.table
    for name, column in plan.columns.items():
        table = table.append_column(column, arrays[name])
    return table


def _label_sets(plan: Plan, predictions: Sequence[Prediction]) -> pa.Array:
    """Lists; in CSV joined as `train` reads them."""
    if plan.format == "csv":
        return pa.array([join_labels(each.labels) for each in predictions], pa.string())
    return pa.array([each.labels for each in predictions], pa.list_(pa.string()))


def _ranked(prediction: Prediction, labels: Sequence[str], top_k: int) -> list[dict[str, object]]:
    probabilities = prediction.probabilities.tolist()
    return [{"label": labels[label_id], "score": probabilities[label_id]} for label_id in prediction.ranked[:top_k].tolist()]


def encode(plan: Plan, table: pa.Table) -> bytes:
    """A part in the format of the output; the same bytes for the same rows."""
    if plan.format == "parquet":
        return _parquet(plan, table)
    return _csv(table) if plan.format == "csv" else _jsonl(plan, table)


def _parquet(plan: Plan, table: pa.Table) -> bytes:
    notes = {b"pigeonhole.bundle": plan.bundle.version.encode(), b"pigeonhole.labels": msgspec.json.encode(plan.bundle.labels)}
    buffer = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(notes), buffer, compression="zstd")
    return bytes(buffer.getvalue())


def _csv(table: pa.Table) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.schema.names)
    writer.writerows([_cell(value) for value in row] for row in _rows(table))
    return text.getvalue().encode()


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*map(_values, table.columns), strict=True)


def _values(column: pa.ChunkedArray) -> list[Any]:
    """A time that Python has no type for, with nanoseconds or after the year 9999, makes its column one of strings."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):
        return list(column.cast(pa.string()).to_pylist())


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    plain = isinstance(value, bool | int | float | list | dict)
    return msgspec.json.encode(value, enc_hook=str).decode() if plain else str(value)


def _jsonl(plan: Plan, table: pa.Table) -> bytes:
    rows = [dict(zip(table.schema.names, row, strict=True)) for row in _rows(table)]
    column = plan.columns.get("probabilities")
    for row in rows if column else []:
        row[column] = dict(zip(plan.bundle.labels, row[column], strict=True))
    return b"".join(msgspec.json.encode(row, enc_hook=str) + b"\n" for row in rows)


def _write_log(plan: Plan, shard: int, found: Answered, ids: Sequence[str]) -> None:
    """One object a shard, under a name that follows from it: however often it is tried, it is there once."""
    sketches = sketch(np.stack([prediction.embedding for prediction in found.predictions])).tolist()
    lines = [encode_line(_record(plan, *row)) for row in zip(found.texts, found.predictions, ids, sketches, strict=True)]
    folder = storage.join(str(plan.options.log), "predictions", partition_of(plan.created_at))
    _create(storage.join(folder, f"{plan.job}-{part_name(shard)}.jsonl.gz"), gzip.compress(b"".join(lines), 6, mtime=0))


def _record(plan: Plan, text: str, prediction: Prediction, prediction_id: str, drawn: list[float]) -> Record:
    return Record(
        prediction_id=prediction_id,
        at=plan.created_at,
        request_id=plan.job,
        model=plan.bundle.name,
        version=plan.bundle.version,
        text=text if plan.options.log_text == "full" else None,
        text_policy=plan.options.log_text,
        features=Features(
            n_chars=len(text),
            n_words=len(text.split()),
            n_tokens=prediction.n_tokens,
            unknown_tokens=prediction.unknown_tokens,
            truncated=prediction.truncated,
            max_logit=float(prediction.logits.max()),
            sketch=drawn,
        ),
        label=prediction.label,
        labels=list(prediction.labels) if plan.bundle.task == "multi_label" else msgspec.UNSET,
        score=prediction.score,
        probabilities=dict(zip(plan.bundle.labels, kept_probabilities(prediction.probabilities), strict=True)),
        decision=prediction.decision,
        latency_ms=0.0,  # nobody waited for it
    )
