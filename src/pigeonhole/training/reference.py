"""reference.parquet: held-out answers and features, without texts; what drift compares the traffic with."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pigeonhole.bundle import Task
from pigeonhole.classifier import Prediction
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.label_sets import split_labels
from pigeonhole.dataset.read import Row, read_rows
from pigeonhole.errors import ConfigError


def choose_rows(path: str | None, data: DataConfig, test: Sequence[Row]) -> list[int]:
    """The places of the test rows that stand in the file, or all. Raises ConfigError for a row that is not in the test split."""
    if path is None:
        return list(range(len(test)))
    file = replace(data, path=path, validation_path=None, test_path=None, sha256=None)
    wanted = {normalise(row.text) for row in read_rows(file)}
    places = [place for place, row in enumerate(test) if normalise(row.text) in wanted]
    missing = len(wanted) - len({normalise(test[place].text) for place in places})
    if missing or not places:
        raise ConfigError(
            f"reference_path={path}: {missing} of its {len(wanted)} texts are not in the test split; all have to be"
        )
    return places


def write_reference(
    path: Path, texts: Sequence[str], answers: Sequence[str], predictions: Sequence[Prediction], task: Task
) -> None:
    """One row a text; the features carry the names that the prediction log gives them. `answers`: as rows have them."""
    if task == "multi_label":
        strings = pa.list_(pa.string())
        said = {
            "true_labels": pa.array([split_labels(answer) for answer in answers], strings),
            "labels": pa.array([found.labels for found in predictions], strings),
        }
    else:
        said = {"true_label": pa.array(answers, pa.string())}
    table = pa.table(
        {
            **said,
            "label": pa.array([found.label for found in predictions], pa.string()),
            "score": pa.array([found.score for found in predictions], pa.float64()),
            "max_logit": pa.array([float(found.logits.max()) for found in predictions], pa.float64()),
            "probabilities": pa.array([found.probabilities.astype("float32") for found in predictions], pa.list_(pa.float32())),
            "embedding": pa.array([found.embedding for found in predictions], pa.list_(pa.float32())),
            "n_chars": pa.array([len(text) for text in texts], pa.int64()),
            "n_words": pa.array([len(text.split()) for text in texts], pa.int64()),
            "n_tokens": pa.array([found.n_tokens for found in predictions], pa.int64()),
            "unknown_tokens": pa.array([found.unknown_tokens for found in predictions], pa.int64()),
            "truncated": pa.array([found.truncated for found in predictions], pa.bool_()),
        }
    )
    pq.write_table(table, path, compression="zstd")
