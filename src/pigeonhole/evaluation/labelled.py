"""Labelled rows to measure a bundle on: any file, or the test split that its own training never saw."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pigeonhole.bundle import Bundle, Manifest, Task
from pigeonhole.dataset.amend import open_amendments
from pigeonhole.dataset.check import files_of, own_shares, verify_files
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.digest import normalise
from pigeonhole.dataset.hub import is_hub
from pigeonhole.dataset.label_sets import ids_of, parts_of
from pigeonhole.dataset.load import Dataset, load_dataset
from pigeonhole.dataset.read import Row, read_rows, some_of
from pigeonhole.dataset.split import split_rows
from pigeonhole.errors import ConfigError, DataError, StorageError
from pigeonhole.metrics import Floats, Ids
from pigeonhole.options import setting


@dataclass
class RowsConfig:
    """What a command that measures asks of its rows."""

    path: str | None = setting(None, "labelled rows, all of them measured on; unset: the test split of the bundle's own data")
    text: str | None = setting(None, "column with the text; unset: text, sentence or utterance")
    label: str | None = setting(None, "column with the label; unset: label, category or intent")
    label_separator: str = setting("|", "what stands between the labels of a row in CSV, for a multi-label bundle")


@dataclass(frozen=True)
class Labelled:
    """Rows with their labels; `source` names them in messages, `sha256` is that of their file (None: the hub)."""

    source: str
    rows: list[Row]
    sha256: str | None
    task: Task = "single_label"

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]

    @property
    def labels(self) -> list[str]:
        return [row.label for row in self.rows]


def read_labelled(path: str, columns: RowsConfig | None = None, task: Task = "single_label") -> Labelled:
    """All rows of a file, read as strictly as training reads them. Raises DataError, StorageError."""
    wanted = columns or RowsConfig()
    config = DataConfig(path=path, text=wanted.text, label=wanted.label, label_separator=wanted.label_separator, task=task)
    digest = verify_files(config)["train"]
    rows = list(read_rows(config))
    if not rows:
        raise DataError(f"{path}: no rows; at least one labelled row is needed")
    return Labelled(path, rows, digest.sha256 if digest else None, task)


def read_own_split(bundle: Bundle) -> tuple[Labelled, Labelled]:
    """The training and the test rows of a bundle, split again as its manifest says. Raises ConfigError."""
    config, dataset = read_own_rows(bundle)
    split = dataset.split
    shared = f"split of {config.path}, seed {config.split_seed}"
    task = bundle.manifest.task
    train = Labelled(f"training {shared}", split.train, None, task)
    return train, Labelled(config.test_path or f"test {shared}", split.test, None, task)


def read_own_rows(bundle: Bundle) -> tuple[DataConfig, Dataset]:
    """What a bundle was trained, selected and measured on, read again as its manifest says. Raises ConfigError."""
    config = own_data(bundle)
    if config is None:
        raise ConfigError(f"{bundle.url}: its manifest does not say what it was trained on; write data.path=FILE")
    try:
        dataset = load_dataset(config)
    except (DataError, StorageError) as error:
        raise ConfigError(
            f"the rows that {bundle.url} kept for its test cannot be read: {error}; write data.path=FILE"
        ) from error
    if not dataset.split.test:
        raise ConfigError(f"{bundle.url}: was trained without a test split; write data.path=FILE")
    return config, dataset


def own_data(bundle: Bundle) -> DataConfig | None:
    """Where a bundle's data were and how they were split; None where its manifest does not say."""
    origin = bundle.manifest.provenance
    recorded = {
        field.name: origin["config"][f"data.{field.name}"]
        for field in dataclasses.fields(DataConfig)
        if f"data.{field.name}" in origin.get("config", {})
    }
    if "path" not in recorded:
        return None
    amended: dict[str, Any] = {key: origin[key] for key in ("patch_sha256", "taxonomy_sha256") if key in origin}
    return DataConfig(**{**recorded, "sha256": origin["data_sha256"], **amended})


def own_patterns(bundle: Bundle) -> str | None:
    """The slices that its own run defined."""
    config = own_data(bundle)
    return config.slices if config else None


def unseen_labels(rows: Labelled, known: Sequence[str]) -> list[str]:
    """Labels of the rows that are not among the known ones, the most frequent first."""
    counts = Counter(label for answer in rows.labels for label in parts_of(answer, rows.task))
    return sorted(counts.keys() - set(known), key=lambda label: (-counts[label], label))


def label_ids(rows: Labelled, known: Sequence[str]) -> Ids:
    """(n,) places of the rows' labels among the known ones; (n, c) where a row may have several.

    Raises DataError for a label that is not among them.
    """
    unseen = unseen_labels(rows, known)
    if unseen:
        line = next(row.line for row in rows.rows if not set(unseen).isdisjoint(parts_of(row.label, rows.task)))
        shown = some_of([repr(label[:40]) for label in unseen])
        some = ", ".join(repr(label[:40]) for label in known[:5]) + (" …" if len(known) > 5 else "")
        raise DataError(
            f"{rows.source}: line {line}: {len(unseen)} of its labels are unseen by the bundle: {shown}; "
            f"the bundle knows {len(known)}: {some}; is data.label the right column?"
        )
    return ids_of(rows.labels, known, rows.task)


def thresholds_of(manifest: Manifest) -> Floats | None:
    """(c,): from which probability on a label is given; None where every text is given one label, the likeliest."""
    if manifest.task == "single_label":
        return None
    return np.array([manifest.thresholds[label] for label in manifest.labels])


def was_trained_on(bundle: Bundle, rows: Labelled) -> bool:
    """Whether the rows are the very file that the bundle was trained on."""
    return rows.sha256 is not None and rows.sha256 == bundle.manifest.provenance.get("data_sha256")


def count_learned(bundle: Bundle, rows: Labelled) -> int | None:
    """How many of the rows have a text that the bundle was trained or selected on, however it is written.

    None where that cannot be told: its manifest names no file, the hub, or one that is not there any more or has changed.
    """
    config = own_data(bundle)
    if config is None or is_hub(config.path):
        return None
    try:
        verify_files(config)
        amendments = open_amendments(config)
        own = {name: list(amendments.rows(config, url)) for name, url in files_of(config).items() if name != "test"}
    except (DataError, StorageError):
        return None
    split = split_rows(own["train"], *own_shares(config), config.split_seed, config.task)
    learned = {normalise(row.text) for row in (*split.train, *own.get("validation", split.validation))}
    return sum(normalise(text) in learned for text in rows.texts)


def learned_note(who: str, bundle: Bundle, rows: Labelled) -> list[str]:
    """What to say where a bundle that is compared with another one knows some of the rows."""
    learned = count_learned(bundle, rows)
    return [f"{who} was trained or selected on {learned:,} of the {len(rows.rows):,} rows: that favours it"] if learned else []
