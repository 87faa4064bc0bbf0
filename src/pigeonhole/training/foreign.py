"""A classifier that somebody else trained, from its folder to a sealed bundle in the registry.

The same export, the same comparison with torch and the same door as at the end of training; only what cannot be known (the data,
a calibration) is left out, and the model card says so.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedTokenizerFast

from pigeonhole import storage
from pigeonhole.bundle import CARD, GOLDEN, REFERENCE, Bundle, Manifest, Precision, Task, Windowing, open_bundle, seal
from pigeonhole.classifier import Classifier, Encoder, Prediction
from pigeonhole.command import say
from pigeonhole.errors import ConfigError, DataError
from pigeonhole.evaluation.labelled import Labelled, RowsConfig, label_ids, read_labelled, thresholds_of
from pigeonhole.evaluation.score import predict_texts
from pigeonhole.metrics import Ids, score_metrics
from pigeonhole.registry import open_registry
from pigeonhole.training import export, provenance, trainer
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.corridor import publish
from pigeonhole.training.import_model import ImportOptions
from pigeonhole.training.model import (
    TextClassifier,
    load_tokenizer,
    positions_of,
    reading,
    require_fit,
    require_layers,
    take_apart,
)
from pigeonhole.training.pretrained import Pretrained, locate
from pigeonhole.training.reference import write_reference

PROBLEM_TYPES = (None, "single_label_classification", "multi_label_classification")

CARD_TEXT = """\
# {name} {version}

A text classifier with {count} labels that was trained elsewhere and imported from `{source}` on {created_at} by `import-model`.

Its probabilities are the {activation} of its logits, not calibrated here. {measured}
The exported fp32 logits are within {difference:.1e} of torch's over {rows} texts; {served} is served.

## Labels

{labels}
"""


def import_model(options: ImportOptions, name: str) -> dict[str, Any]:
    """Raises ConfigError, DataError, ParityError, StorageError."""
    assert options.model is not None
    pretrained = locate(options.model, None, "model")
    pretrained = Pretrained(pretrained.source, pretrained.local, options.revision)
    tokenizer = load_tokenizer(pretrained, [], "model")
    model, labels, task = _load(pretrained, tokenizer, options)
    columns = RowsConfig(text=options.text, label=options.label, label_separator=options.label_separator)
    rows, true_ids = _labelled(options.data, columns, labels, task) if options.data else (None, None)
    texts = rows.texts if rows else list(export.PROBES)
    registry = open_registry(options.registry)
    storage.require_writable("registry", registry.url)  # before the long work
    say(f"model: {type(model.body).__name__}, {len(labels)} labels; compared with torch over {len(texts)} texts")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "bundle"
        manifest = export.draft(
            folder,
            model,
            tokenizer.backend_tokenizer.to_str(),
            name=name,
            labels=labels,
            max_length=options.max_length,
            task=task,
            windowing=Windowing(),
            threshold=options.threshold,
            served="int8" if rows else "fp32",
            int8=rows is not None,  # which nobody has compared is not served
        )
        torch_logits = _torch_logits(model, Encoder(tokenizer.backend_tokenizer, options.max_length), texts)
        classifiers = {
            precision: Classifier.load(Bundle(str(folder), folder, manifest), precision) for precision in manifest.models
        }
        predictions = {precision: predict_texts(classifier, texts) for precision, classifier in classifiers.items()}
        parity = export.compare(torch_logits, classifiers, predictions, texts)
        export.require_parity(parity, options.tolerance, "tolerance")
        objection = export.why_not_int8(parity, options.min_agreement, "min_agreement")
        if objection:
            say(f"export: {objection}; int8 is left out, fp32 is served")
            del classifiers["int8"], predictions["int8"]
            manifest = export.leave_int8_out(manifest, folder)
        served = predictions[manifest.served]
        measured = {}
        if rows and true_ids is not None:
            probabilities = np.stack([found.probabilities for found in served])
            measured = {"test": score_metrics(true_ids, probabilities, labels, options.seed, thresholds_of(manifest))}
        manifest = msgspec.structs.replace(manifest, parity=asdict(parity), metrics=measured, provenance=_origin(options))
        manifest = _seal(folder, manifest, classifiers, rows, served, options.model)
        url, alias = publish(registry, folder, manifest)
    return {
        "bundle": url,
        "model": name,
        "version": manifest.version,
        "alias": alias,
        "served": manifest.served,
        "labels": labels,
        "parity": asdict(parity),
        **measured,
    }


def _load(
    pretrained: Pretrained, tokenizer: PreTrainedTokenizerFast, options: ImportOptions
) -> tuple[TextClassifier, list[str], Task]:
    known = {"revision": pretrained.revision, "trust_remote_code": False}
    with reading(pretrained, "model"):
        config = AutoConfig.from_pretrained(pretrained.source, **known)
        _check(config, options)
        body, info = AutoModelForSequenceClassification.from_pretrained(
            pretrained.source,
            config=config,
            use_safetensors=True,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # refused below, by name
            output_loading_info=True,
            **known,
        )
    require_fit(body, tokenizer, sorted(key for key, *_ in info["mismatched_keys"]), f"model={options.model}")
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"model={options.model}: has no trained weights for {', '.join(missing[:3])}: this is an encoder, not a classifier; "
            f"fine-tune it with uv run train model.pretrained={options.model}"
        )
    task: Task = "multi_label" if config.problem_type == "multi_label_classification" else "single_label"
    return take_apart(body.eval(), f"model={options.model}"), [str(label) for _, label in sorted(config.id2label.items())], task


def _check(config: PretrainedConfig, options: ImportOptions) -> None:
    """Raises ConfigError for what a bundle cannot say."""
    if config.problem_type not in PROBLEM_TYPES or len(config.id2label or {}) < 2:
        kind = config.problem_type or "a head with one output"
        raise ConfigError(f"model={options.model}: {kind}; expected labels for each text, two or more to choose from")
    names = [str(label) for label in (config.id2label or {}).values()]
    if len(set(names)) < len(names) or not all(names):
        raise ConfigError(f"model={options.model}: id2label in config.json names labels twice, or with nothing; mend it there")
    if sorted(config.id2label or ()) != list(range(len(names))):
        raise ConfigError(f"model={options.model}: id2label in config.json has to number its labels from 0 on; mend it there")
    require_layers(config, f"model={options.model}")
    positions = positions_of(config)
    if positions is not None and options.max_length > positions:
        raise ConfigError(f"max_length={options.max_length}: this model reads at most {positions} tokens")


def _torch_logits(model: TextClassifier, encoder: Encoder, texts: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(n, c)."""
    input_ids = [found.input_ids for found in encoder.encode(texts)]
    return trainer.predict_logits(model, TokenizedRows(input_ids, np.zeros(len(texts), np.int64)))


def _labelled(path: str, columns: RowsConfig, labels: Sequence[str], task: Task) -> tuple[Labelled, Ids]:
    """Rows and their label ids, as `read_labelled` and `label_ids`, whose words for a column name the keys of `train`."""
    try:
        rows = read_labelled(path, columns, task)
        return rows, label_ids(rows, labels)
    except DataError as error:
        raise DataError(re.sub(r"\bdata\.(text|label)\b", r"\1", str(error))) from error


def _origin(options: ImportOptions) -> dict[str, Any]:
    config = {"import.model": options.model, "import.revision": options.revision, "import.data": options.data}
    origin = provenance.collect(config, "", options.seed, torch.get_num_threads())
    return {key: value for key, value in origin.items() if key != "data_sha256"}  # what it was trained on is not known


def _seal(
    folder: Path,
    manifest: Manifest,
    classifiers: dict[Precision, Classifier],
    rows: Labelled | None,
    served: Sequence[Prediction],
    source: str,
) -> Manifest:
    """The sealed manifest, read back through the server's door."""
    storage.write(
        str(folder / GOLDEN), msgspec.json.format(msgspec.json.encode(export.golden_answers(list(classifiers.values()))))
    )
    if rows:
        write_reference(folder / REFERENCE, rows.texts, rows.labels, served, manifest.task)
    storage.write(str(folder / CARD), _card(manifest, source).encode())
    sealed = seal(folder, manifest)
    Classifier.open(open_bundle(str(folder)))
    return sealed


def _card(manifest: Manifest, source: str) -> str:
    test = manifest.metrics.get("test")
    return CARD_TEXT.format(
        name=manifest.name,
        version=manifest.version,
        count=len(manifest.labels),
        source=source,
        created_at=manifest.created_at,
        activation="sigmoid" if manifest.task == "multi_label" else "softmax",
        measured=f"Accuracy {test['accuracy']:.3f} on {test['n']} rows given."
        if test
        else "Nothing was measured on labelled rows.",
        difference=manifest.parity["fp32_max_logit_difference"],
        rows=manifest.parity["rows"],
        served=manifest.served,
        labels="\n".join(f"- `{label}`" for label in manifest.labels),
    )
