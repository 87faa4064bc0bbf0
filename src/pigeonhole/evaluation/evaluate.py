"""`uv run evaluate bundle=URL data.path=FILE`: any bundle on any labelled file, through the server's own classifier."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import msgspec

from pigeonhole import storage
from pigeonhole.bundle import Bundle, Precision, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import command, say
from pigeonhole.configuration import compose
from pigeonhole.errors import ConfigError
from pigeonhole.evaluation import report
from pigeonhole.evaluation.labelled import (
    Labelled,
    RowsConfig,
    count_learned,
    label_ids,
    own_data,
    own_patterns,
    read_labelled,
    read_own_split,
    thresholds_of,
    was_trained_on,
)
from pigeonhole.evaluation.score import for_many, predict_rows
from pigeonhole.evaluation.slices import text_slices
from pigeonhole.metrics import Floats, Ids, predict, score_metrics
from pigeonhole.options import setting


@dataclass
class TrainRowsConfig:
    path: str | None = setting(None, "labelled rows to fit the baselines on; unset: cross-fit on the measured rows")


@dataclass
class EvaluateConfig:
    """Measure a bundle on labelled rows, beside what is had without one: the commonest label, TF-IDF.

    uv run evaluate bundle=BUNDLE data.path=new.csv data.text=message data.label=queue
    """

    bundle: str | None = setting(None, 'URL of the bundle, as `train` printed it as "bundle"; needed')
    data: RowsConfig = field(default_factory=RowsConfig)
    train: TrainRowsConfig = field(default_factory=TrainRowsConfig)
    precision: str | None = setting(None, "model of the bundle; unset: the one that it serves", choices=("fp32", "int8"))
    threads: int = setting(0, "threads of the model; 0: one a core", ge=0, le=1024)
    seed: int = setting(0, "seed of the intervals and of the folds", ge=0, lt=2**32)
    out: str | None = setting(None, "URL of a folder for report.md, its pictures and evaluation.json")


def run(arguments: list[str]) -> dict[str, Any]:
    config = compose(EvaluateConfig, "evaluate", arguments)
    if config.bundle is None:
        raise ConfigError('bundle: a value is missing, write bundle=URL, as `train` printed it as "bundle"')
    if config.out is not None:
        storage.require_writable("out", config.out)
    laps = [time.perf_counter()]
    precision = cast(Precision | None, config.precision)
    bundle = open_bundle(storage.to_url(config.bundle), precision or "served")
    labels = bundle.manifest.labels
    thresholds = thresholds_of(bundle.manifest)
    train, test = _rows(config, bundle)
    true_ids = label_ids(test, labels)
    classifier = for_many(Classifier.open(bundle, precision, config.threads))
    laps.append(time.perf_counter())
    baselines = _score_baselines(train, test, labels, config.seed)
    laps.append(time.perf_counter())
    probabilities = predict_rows(classifier, test.texts)
    laps.append(time.perf_counter())
    result = {
        "bundle": bundle.url,
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "precision": classifier.precision,
        "data": test.source,
        "warnings": _warnings(bundle, test) if config.data.path else [],
        "test": score_metrics(true_ids, probabilities, labels, config.seed, thresholds),
        "slices": text_slices(test.texts, true_ids, predict(probabilities, thresholds), own_patterns(bundle)),
        "baselines": baselines,
        "seconds": _seconds(laps),
    }
    for warning in result["warnings"]:
        say(f"warning: {warning}")
    say(report.table(result))
    if config.out is not None:
        _write(config.out, result, true_ids, probabilities, labels)
        result["report"] = storage.join(storage.to_url(config.out), "report.md")
    return result


main = command(run)


def _rows(config: EvaluateConfig, bundle: Bundle) -> tuple[Labelled | None, Labelled]:
    """The rows that the baselines are fitted on, where there are any, and the rows to measure on."""
    data = config.data
    task = bundle.manifest.task
    train, test = (None, read_labelled(data.path, data, task)) if data.path else read_own_split(bundle)
    if config.train.path:
        train = read_labelled(config.train.path, data, task)
    return train, test


def _score_baselines(train: Labelled | None, test: Labelled, labels: Sequence[str], seed: int) -> dict[str, Any]:
    # scikit-learn takes seconds to import, for this alone.
    from pigeonhole.evaluation.baselines import FOLDS, cross_fit_baselines, score_baselines

    true_ids = label_ids(test, labels)
    if train is None:
        return {**cross_fit_baselines(test.texts, true_ids, labels, seed), "fitted_on": f"cross-fit {FOLDS} folds of this file"}
    train_ids = label_ids(train, labels)
    return {**score_baselines(train.texts, train_ids, test.texts, true_ids, labels, seed), "fitted_on": train.source}


def _warnings(bundle: Bundle, test: Labelled) -> list[str]:
    if was_trained_on(bundle, test):
        return ["the bundle was trained on rows of this very file; unset data.path measures on those that it kept for its test"]
    learned = count_learned(bundle, test)
    if learned:
        of = f"{learned:,} of the {len(test.rows):,} rows have a text that the bundle was trained or selected on"
        return [f"{of}: they say little of new texts; leave them out, or unset data.path"]
    own = own_data(bundle)
    if learned is None and own is not None:
        return [f"{own.path} is not what the bundle was trained on any more, or not here: which rows it knows cannot be told"]
    return []


def _seconds(laps: list[float]) -> dict[str, float]:
    legs = zip(("load", "baselines", "score"), laps, laps[1:], strict=False)
    return {**{leg: round(end - start, 3) for leg, start, end in legs}, "total": round(time.perf_counter() - laps[0], 3)}


def _labels_picture(result: dict[str, Any], true_ids: Ids, probabilities: Floats, labels: tuple[str, ...]) -> dict[str, bytes]:
    """What one label is taken for; where a text may have several, how well each is found."""
    from pigeonhole.evaluation import plots  # matplotlib takes a second to import

    if true_ids.ndim == 2:
        return {"labels.png": plots.labels_png(result["test"]["per_class"])}
    return {"confusion_matrix.png": plots.confusion_png(true_ids, predict(probabilities), labels)}


def _write(out: str, result: dict[str, Any], true_ids: Ids, probabilities: Floats, labels: tuple[str, ...]) -> None:
    from pigeonhole.evaluation import plots

    files = {
        "report.md": report.markdown(result).encode(),
        "evaluation.json": msgspec.json.format(msgspec.json.encode(result)),
        "reliability.png": plots.reliability_png(true_ids, probabilities),
        **_labels_picture(result, true_ids, probabilities, labels),
    }
    for name, data in files.items():
        storage.write(storage.join(out, name), data)


if __name__ == "__main__":
    main()
