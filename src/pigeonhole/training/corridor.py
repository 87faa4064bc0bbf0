"""The corridor from rows to a sealed bundle in the registry, one step after another, each naming the next.

rows -> split -> ids -> head on the frozen encoder -> fine-tuned model -> ONNX (fp32, int8) -> read back through the server's own
door and compared -> calibration, thresholds, what is out of scope -> sealed -> registry.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from pigeonhole import storage
from pigeonhole.bundle import CARD, GOLDEN, MANIFEST, REFERENCE, Bundle, Manifest, Precision, Task, WindowRule, open_bundle, seal
from pigeonhole.classifier import Classifier, Encoder, Prediction
from pigeonhole.command import is_first_process, say
from pigeonhole.configuration import to_yaml
from pigeonhole.dataset.check import FEW_ROWS
from pigeonhole.dataset.label_sets import ids_of, join_labels
from pigeonhole.dataset.load import Dataset, load_dataset
from pigeonhole.dataset.read import Row
from pigeonhole.dataset.taxonomy import read_taxonomy
from pigeonhole.errors import BundleError, ConfigError, RegistryError
from pigeonhole.evaluation import plots
from pigeonhole.evaluation.baselines import score_baselines
from pigeonhole.evaluation.behaviour import measure_behaviour, minimum_of, summarise
from pigeonhole.evaluation.labelled import thresholds_of
from pigeonhole.evaluation.report import measures_of
from pigeonhole.evaluation.score import for_many, predict_texts
from pigeonhole.evaluation.slices import read_patterns, text_slices
from pigeonhole.metrics import Ids, accuracy, macro_f1, predict, score_metrics
from pigeonhole.options import to_flat
from pigeonhole.registry import ATTEMPTS, Registry
from pigeonhole.training import export, provenance, tfidf, trainer
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.card import write_card
from pigeonhole.training.checkpoint import Epoch
from pigeonhole.training.config import LONGEST_NAME, TrainConfig, TrainerConfig
from pigeonhole.training.decisions import fit_rules, rows_to_show, score_rules, write_rules
from pigeonhole.training.distillation import Distillation, open_teacher, teacher_logits, with_teacher
from pigeonhole.training.head import fit_head
from pigeonhole.training.imbalance import balanced_weights, refuse_dead_labels
from pigeonhole.training.layers import require_layer_to_learn
from pigeonhole.training.lora import add_adapters, merge_adapters, require_attention
from pigeonhole.training.loss import LabelLoss, several_labels_loss
from pigeonhole.training.model import TextClassifier, load_model, load_tokenizer
from pigeonhole.training.precision import Precision as TrainingPrecision
from pigeonhole.training.pretrained import TFIDF, Pretrained, digest, locate
from pigeonhole.training.reference import choose_rows, write_reference
from pigeonhole.training.run_folder import CHECKPOINT, RESULT, RunFolder, open_run_folder, require_run_folder
from pigeonhole.training.tfidf import TfidfModel
from pigeonhole.training.tokenize import make_encoder, tokenize, windowing_of
from pigeonhole.training.tracking import NoTracker, Tracker, open_tracker
from pigeonhole.training.trainer import Criterion, Recipe
from pigeonhole.training.warm_start import keep_head

PLOTS = "plots"  # the folder of a run that holds its pictures
FirstAlias = Literal["production", "candidate"]  # what a new version is given


@dataclass(frozen=True)
class Tokenized:
    train: TokenizedRows
    validation: TokenizedRows
    test: TokenizedRows


class Stopwatch:
    """Seconds of each leg of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = self._lap = time.perf_counter()

    def lap(self, leg: str) -> None:
        now = time.perf_counter()
        self.seconds[leg] = round(now - self._lap, 2)
        self._lap = now

    def total(self) -> dict[str, float]:
        return {**self.seconds, "total": round(time.perf_counter() - self._started, 2)}


@dataclass(frozen=True)
class Loaded:
    """An encoder with its head as they begin, and what it reads."""

    tokenizer: PreTrainedTokenizerFast
    rows: Tokenized
    model: TextClassifier


@dataclass(frozen=True)
class Begun:
    """A run folder, held while this lives, with its rows and its origin; nothing is fitted yet. Without one: another process."""

    name: str
    folder: RunFolder | None
    loaded: Loaded | None  # none for tfidf
    threads: int
    dataset: Dataset
    fingerprint: str
    origin: dict[str, Any]
    tracker: Tracker
    compared: list[int]  # places of the test rows that drift compares the traffic with
    teacher: Bundle | None

    @property
    def out(self) -> Path:
        assert self.folder is not None
        return self.folder.path


@dataclass(frozen=True)
class Fitted:
    model: TextClassifier | TfidfModel
    tokenizer: Tokenizer
    twin: PreTrainedTokenizerFast | None  # what `transformers` opens the model with
    rows: Tokenized
    history: list[Epoch]

    def predict_logits(self, rows: TokenizedRows) -> NDArray[np.float32]:
        """-> (n, c)."""
        if isinstance(self.model, TfidfModel):
            return self.model.predict_logits(rows)
        return trainer.predict_logits(self.model, rows)


def validate(config: TrainConfig, on_epoch: Callable[[Epoch], None], split: str = "validation") -> float:
    """Fit, and the macro-F1 of what leaves on a split: a trial of a sweep. Test rows are looked at where it is "test" alone.

    `on_epoch` may raise to end it. A folder that was left in the middle is gone on with, as `train` does.
    """
    if not config.trainer.epochs and config.model.pretrained != TFIDF:
        raise ConfigError("trainer.epochs=0: a trial is measured after each epoch; give one at least")
    watch = Stopwatch()
    fitted = _fit(config, _begin(config, watch), watch, on_epoch)
    # No epoch has seen the test rows, nor a head that was refitted.
    if split == "test" or config.trainer.refit_head:
        rows = fitted.rows.test if split == "test" else fitted.rows.validation
        return trainer.scores(fitted.predict_logits(rows), rows.label_ids)[1]
    return max(epoch.validation_macro_f1 for epoch in fitted.history)


def train(config: TrainConfig) -> dict[str, Any]:
    """What `uv run train` prints. Raises ConfigError, DataError, StorageError, ParityError and what training raises.

    Of several processes all but the first return nothing as soon as the model is trained.
    """
    storage.require_writable("registry", config.registry)
    watch = Stopwatch()
    begun = _begin(config, watch)
    if begun.folder is None:
        _take_part(config, begun)
        return {}
    out, dataset = begun.out, begun.dataset
    fitted = _fit(config, begun, watch, lambda epoch: None)
    registry, folder = Registry(config.registry), out / "bundle"
    manifest = _published(config, folder, registry) or _make_bundle(config, begun, fitted, folder, watch)
    if config.export.test_texts:  # before the version is seen: who reads one keeps what it read
        registry.keep_test_texts(begun.name, manifest.version, [dataset.split.test[place].text for place in begun.compared])
    url, alias = publish(registry, folder, manifest)
    watch.lap("bundle")

    result = {
        "bundle": url,
        "model": begun.name,
        "version": manifest.version,
        "alias": alias,
        "served": manifest.served,
        **{key: value for key, value in manifest.metrics.items() if key != "epochs"},
        "parity": manifest.parity,
        "seconds": watch.total(),
        "run": str(out),
    }
    storage.write(str(out / RESULT), msgspec.json.format(msgspec.json.encode(result)))
    begun.tracker.finish(_summary(result), {path.stem: path for path in sorted((out / PLOTS).glob("*.png"))}, folder)
    _say_result(result)
    return {**result, "baselines": {baseline: _without_classes(found) for baseline, found in result["baselines"].items()}}


def _published(config: TrainConfig, folder: Path, registry: Registry) -> Manifest | None:
    """What the same run had published when it was killed, before it could say so: made again, it would be a second version."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest = open_bundle(str(folder)).manifest
    except BundleError as error:  # as a machine may leave it that lost its power
        say(f"{error}; it is made anew")
        return None
    same = manifest.provenance["config"] == msgspec.json.decode(msgspec.json.encode(to_flat(config)))
    return manifest if same and registry.has(folder, manifest) else None


def _make_bundle(config: TrainConfig, begun: Begun, fitted: Fitted, folder: Path, watch: Stopwatch) -> Manifest:
    """Exported, compared, measured, sealed, and the pictures of its measures in the run folder."""
    name, out, threads, dataset, split = begun.name, begun.out, begun.threads, begun.dataset, begun.dataset.split
    windowing = windowing_of(config.model)
    model, rows, history = fitted.model, fitted.rows, fitted.history

    if isinstance(model, TextClassifier) and fitted.twin:
        model.save_twin(out / "model", fitted.twin)
    unseen = [row.text for row in (*split.test, *split.validation)]  # by the weights: they tell how the exported models differ
    trained_logits = np.concatenate([fitted.predict_logits(rows.test), fitted.predict_logits(rows.validation)])
    manifest = export.draft(
        folder,
        model,
        fitted.tokenizer.to_str(),
        name=name,
        labels=dataset.labels,
        task=_task(config),
        max_length=config.model.max_length,
        windowing=windowing,
        threshold=config.serve.threshold,
        served="int8" if config.export.served == "int8" else "fp32",
        int8=config.export.int8,
        usual=rows.train.input_ids,
    )
    watch.lap("export")

    classifiers = {
        precision: for_many(Classifier.load(Bundle(str(folder), folder, manifest), precision, threads))
        for precision in manifest.models
    }
    predictions = {precision: predict_texts(classifier, unseen) for precision, classifier in classifiers.items()}
    parity = export.compare(trained_logits, classifiers, predictions, unseen)
    export.require_parity(parity, config.export.tolerance)
    objection = export.why_not_int8(parity, config.export.min_agreement)
    if objection:
        say(f"export: {objection}; int8 is left out, fp32 is served")
        del classifiers["int8"], predictions["int8"]
        manifest = export.leave_int8_out(manifest, folder)
    inside = predictions[manifest.served][len(split.test) :]
    predictions = {precision: found[: len(split.test)] for precision, found in predictions.items()}
    rules = fit_rules(
        classifiers[manifest.served], inside, manifest, dataset, config.decision, config.seed, by_label=not _balanced(config)
    )
    manifest = write_rules(rules, manifest, folder)
    classifiers = {precision: classifier.under(manifest, rules.neighbours) for precision, classifier in classifiers.items()}
    predictions = {precision: list(map(classifiers[precision].judge_again, found)) for precision, found in predictions.items()}
    results = _evaluate(dataset, rows, predictions, manifest, config.seed)
    refuse_dead_labels(results["test"]["per_class"], config.trainer.allow_dead_labels)
    results |= _look_closer(rows.test.label_ids, dataset, config, classifiers[manifest.served], predictions[manifest.served])
    outside = predict_texts(classifiers[manifest.served], dataset.out_of_scope.test)
    results["decisions"] = score_rules(rules, manifest, rows.test.label_ids, predictions[manifest.served], outside)
    watch.lap("evaluation")

    manifest = msgspec.structs.replace(
        manifest,
        parity=asdict(parity),
        metrics={**results, "epochs": [asdict(epoch) for epoch in history]},
        provenance=begun.origin,
    )
    golden = export.golden_answers(list(classifiers.values()))
    storage.write(str(folder / GOLDEN), msgspec.json.format(msgspec.json.encode(golden)))
    served = predictions[manifest.served]
    compared = begun.compared
    write_reference(
        folder / REFERENCE,
        [split.test[place].text for place in compared],
        [split.test[place].label for place in compared],
        [served[place] for place in compared],
        manifest.task,
    )
    storage.write(str(folder / CARD), write_card(manifest).encode())
    manifest = seal(folder, manifest)
    Classifier.open(open_bundle(str(folder)))
    _draw(out / PLOTS, dataset, rows, served, history, results["test"])
    return manifest


def _begin(config: TrainConfig, watch: Stopwatch) -> Begun:
    name = _model_name(config)
    pretrained = replace(locate(config.model.pretrained, config.model.sha256), revision=config.model.revision)
    require_run_folder(config.out)
    if config.trainer.compile and config.model.pretrained != TFIDF:
        trainer.require_compiler()
    read_patterns(config.data.slices)  # needed only at the end, where a mistake would cost the training
    threads = trainer.set_determinism(config.seed, config.trainer.threads)
    dataset = load_dataset(config.data)
    split = dataset.split
    sizes = f"{len(split.train)} training, {len(split.validation)} validation, {len(split.test)} test rows"
    say(f"data: {sizes}, {len(dataset.labels)} labels")
    _warn(config, dataset)
    compared = choose_rows(config.reference_path, config.data, split.test)
    teacher = open_teacher(config.trainer.teacher, dataset.labels) if config.trainer.teacher else None
    watch.lap("data")
    loaded = _load(config, pretrained, dataset) if config.model.pretrained != TFIDF else None
    watch.lap("model")
    fingerprint = _fingerprint(config, pretrained, dataset, threads, teacher)
    origin = provenance.collect(to_flat(config), dataset.sha256, config.seed, threads, dataset.amendments)
    if not is_first_process():
        return Begun(name, None, loaded, threads, dataset, fingerprint, origin, NoTracker(), compared, teacher)
    folder = open_run_folder(config.out, name, fingerprint, resume=config.resume == "auto")
    out = folder.path
    storage.write(str(out / "config.yaml"), to_yaml(config).encode())
    storage.write(str(out / "provenance.json"), msgspec.json.format(msgspec.json.encode(origin)))
    tracker = open_tracker(config.tracking.backend, out, name, config.tracking.project, config.tracking.entity, to_flat(config))
    return Begun(name, folder, loaded, threads, dataset, fingerprint, origin, tracker, compared, teacher)


def _warn(config: TrainConfig, dataset: Dataset) -> None:
    """Of what there are too few rows for."""
    for finding in dataset.report["suspicious"]:
        if finding["finding"] == FEW_ROWS:
            say(f"warning: {finding['count']:,} {finding['says']}")
    target, rows = config.decision.precision, len(dataset.split.validation)
    if target is not None and rows < (needed := rows_to_show(target)):
        say(
            f"warning: decision.precision={target:g}: {rows} validation rows cannot show it, {needed} or more could; "
            "all is going to be for review"
        )


def _fit(config: TrainConfig, begun: Begun, watch: Stopwatch, on_epoch: Callable[[Epoch], None]) -> Fitted:
    if begun.loaded is None:
        return _fit_words(config, begun, watch, on_epoch)
    tokenizer, rows, model = begun.loaded.tokenizer, begun.loaded.rows, begun.loaded.model
    balanced, recipe = _balanced(config), make_recipe(config)
    learned = trainer.keep_hidden_states(model, rows.train, recipe.frozen_layers, recipe.precision)
    if config.trainer.fit_head_first and not config.model.keep_head:
        embeddings = trainer.embed(model, learned, recipe.precision)
        fit_head(model.head, embeddings, rows.train.label_ids, balanced)
        watch.lap("head")
    checkpoint = begun.out / CHECKPOINT
    checkpoint.mkdir(exist_ok=True)
    history: list[Epoch] = []

    def tell(history: list[Epoch]) -> None:
        _tell(history, begun.tracker, begun.out)
        on_epoch(history[-1])

    if config.trainer.epochs:
        history = _fine_tune(config, begun, model, replace(rows, train=learned), checkpoint, tell)
        watch.lap("training")
    if config.trainer.refit_head:
        embeddings = trainer.embed(model, learned, recipe.precision)
        fit_head(model.head, embeddings, rows.train.label_ids, balanced)
        watch.lap("refit")
    return Fitted(model, tokenizer.backend_tokenizer, tokenizer, rows, history)


def _task(config: TrainConfig) -> Task:
    return "multi_label" if config.data.task == "multi_label" else "single_label"


def _balanced(config: TrainConfig) -> bool:
    """Whether labels weigh alike, however many rows they have."""
    return "balanced" in (config.trainer.class_weights, config.trainer.sampling)


def _take_part(config: TrainConfig, begun: Begun) -> None:
    """Another process than the first: its share of every step, from the weights that the first one sends."""
    if begun.loaded is None or not config.trainer.epochs:
        return
    nowhere = Path(os.devnull)  # only the first process reads or writes
    _fine_tune(config, begun, begun.loaded.model, begun.loaded.rows, nowhere, lambda history: None)


def _load(config: TrainConfig, pretrained: Pretrained, dataset: Dataset) -> Loaded:
    """Raises ConfigError for an encoder that is not there, or for which something that is asked for does not fit."""
    tokenizer = load_tokenizer(pretrained, [row.text for row in dataset.split.train])
    encoder = make_encoder(tokenizer.backend_tokenizer, config.model)
    model = load_model(
        pretrained,
        dataset.labels,
        tokenizer,
        averaging_layer=config.model.averaging_layer,
        max_length=config.model.max_length,
        layers=config.model.layers,
        task=_task(config),
    )
    if config.trainer.frozen_layers:
        require_layer_to_learn(model, config.trainer.frozen_layers)
    if config.trainer.lora_rank:
        require_attention(model, config.trainer.lora_rank)
    if config.model.keep_head:
        _keep_head(model, config, pretrained, dataset)
    return Loaded(tokenizer, _tokenize(encoder, windowing_of(config.model).rule, dataset, config.data.task), model)


def _fine_tune(
    config: TrainConfig, begun: Begun, model: TextClassifier, rows: Tokenized, folder: Path, tell: Callable[[list[Epoch]], None]
) -> list[Epoch]:
    chosen = config.trainer
    learned, criterion = _targets(config, begun, rows.train)
    if chosen.lora_rank:
        add_adapters(model, chosen.lora_rank, chosen.lora_alpha, chosen.lora_dropout)
    recipe = make_recipe(config)
    history = trainer.train(model, learned, rows.validation, recipe, folder, begun.fingerprint, tell, criterion)
    if chosen.lora_rank:
        merge_adapters(model)
    return history


def _targets(config: TrainConfig, begun: Begun, rows: TokenizedRows) -> tuple[TokenizedRows, Criterion]:
    """What is learned of the training rows, and how far off it is measured."""
    chosen = config.trainer
    if rows.label_ids.ndim == 2:
        return rows, several_labels_loss
    weights = balanced_weights(rows.label_ids, len(begun.dataset.labels)) if chosen.class_weights == "balanced" else None
    criterion = LabelLoss(chosen.label_smoothing, weights, chosen.focal_gamma if chosen.loss == "focal" else 0.0)
    if begun.teacher is None:
        return rows, criterion
    texts = [row.text for row in begun.dataset.split.train]
    cache = begun.folder.path if begun.folder else None
    logits = teacher_logits(begun.teacher, texts, begun.dataset.labels, cache, begun.threads)
    taught = replace(rows, label_ids=cast(NDArray[np.int64], with_teacher(rows.label_ids, logits)))  # the loss tells them apart
    return taught, Distillation(criterion, chosen.teacher_share, chosen.teacher_temperature)


def _keep_head(model: TextClassifier, config: TrainConfig, pretrained: Pretrained, dataset: Dataset) -> None:
    source = Path(pretrained.source)
    if not (pretrained.local and source.is_dir()):
        raise ConfigError(
            f"model.keep_head=true: model.pretrained={config.model.pretrained} is no folder; give a run's runs/…/model"
        )
    taxonomy = read_taxonomy(config.data.taxonomy) if config.data.taxonomy else None
    keep_head(model, source, dataset.labels, taxonomy.ancestors if taxonomy else lambda label: [label])


def _fit_words(config: TrainConfig, begun: Begun, watch: Stopwatch, on_epoch: Callable[[Epoch], None]) -> Fitted:
    dataset, chosen = begun.dataset, config.tfidf
    tokenizer = tfidf.make_tokenizer([row.text for row in dataset.split.train])
    rows = _tokenize(make_encoder(tokenizer, config.model), windowing_of(config.model).rule, dataset, config.data.task)
    watch.lap("model")
    model = tfidf.fit(
        rows.train,
        inverse_regularisation=chosen.inverse_regularisation,
        pairs=chosen.pairs,
        max_features=chosen.max_features,
        seed=config.seed,
        balanced=config.trainer.class_weights == "balanced",
    )
    watch.lap("training")
    losses, scores = zip(
        *(_measure(model.predict_logits(part), part.label_ids) for part in (rows.train, rows.validation)), strict=True
    )
    only = Epoch(
        number=1,
        step=1,
        loss=losses[0],
        validation_loss=losses[1],
        validation_accuracy=scores[1][0],
        validation_macro_f1=scores[1][1],
        learning_rate=0.0,
        seconds=watch.seconds["training"],
    )
    _tell([only], begun.tracker, begun.out)
    on_epoch(only)
    return Fitted(model, tokenizer, None, rows, [only])


def _measure(logits: NDArray[np.float32], label_ids: NDArray[np.int64]) -> tuple[float, tuple[float, float]]:
    """Cross entropy; accuracy and macro-F1."""
    loss = -log_softmax(logits, axis=1)[np.arange(len(label_ids)), label_ids].mean()
    predicted = logits.argmax(axis=1)
    return float(loss), (accuracy(label_ids, predicted), macro_f1(label_ids, predicted))


def _model_name(config: TrainConfig) -> str:
    if config.name is not None:
        return config.name
    stem = Path(config.data.path.split(":")[-1]).stem
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:LONGEST_NAME].rstrip("-._") or "model"


def _fingerprint(config: TrainConfig, pretrained: Pretrained, dataset: Dataset, threads: int, teacher: Bundle | None) -> str:
    """Of all that the weights depend on."""
    decisive = {
        key: value for key, value in to_flat(config).items() if key == "seed" or key.startswith(("data.", "model.", "trainer."))
    }
    del decisive["trainer.allow_dead_labels"]  # asked when the weights are there: a run that failed by it goes on with it
    rows = {name: file["sha256"] for name, file in dataset.report["files"].items() if name != "test"}
    processes = os.environ.get("WORLD_SIZE", "1")
    begins = digest(pretrained), teacher.manifest.seal if teacher else None
    return hashlib.sha256(msgspec.json.encode([decisive, rows, dataset.amendments, threads, processes, begins])).hexdigest()


def _tokenize(encoder: Encoder, rule: WindowRule, dataset: Dataset, task: str) -> Tokenized:
    def of(rows: Sequence[Row]) -> TokenizedRows:
        label_ids = ids_of([row.label for row in rows], dataset.labels, task)
        return tokenize(encoder, rule, [row.text for row in rows], label_ids)

    split = dataset.split
    return Tokenized(of(split.train), of(split.validation), of(split.test))


def make_recipe(config: TrainConfig) -> Recipe:
    chosen: TrainerConfig = config.trainer
    return Recipe(
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        learning_rate=chosen.learning_rate,
        head_learning_rate=chosen.head_learning_rate,
        weight_decay=chosen.weight_decay,
        warmup=chosen.warmup,
        max_grad_norm=chosen.max_grad_norm,
        patience=chosen.patience,
        freeze_word_embeddings=chosen.freeze_word_embeddings or chosen.lora_rank > 0,
        seed=config.seed,
        average_decay=chosen.average_decay,
        precision=cast(TrainingPrecision, chosen.precision),
        compile=chosen.compile,
        balanced_sampling=chosen.sampling == "balanced",
        layer_decay=chosen.layer_decay,
        frozen_layers=chosen.frozen_layers,
    )


def _tell(history: list[Epoch], tracker: Tracker, out: Path) -> None:
    """The last epoch's numbers to the terminal, the run folder and the tracker."""
    epoch = history[-1]
    say(
        f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation loss {epoch.validation_loss:.4f}, "
        f"accuracy {epoch.validation_accuracy:.4f}, macro-F1 {epoch.validation_macro_f1:.4f} ({epoch.seconds:.0f} s)"
    )
    storage.write(str(out / "history.jsonl"), b"".join(msgspec.json.encode(seen) + b"\n" for seen in history))
    tracker.log({key: value for key, value in asdict(epoch).items() if key != "step"}, epoch.step)


def _evaluate(
    dataset: Dataset, rows: Tokenized, predictions: Mapping[Precision, Sequence[Prediction]], manifest: Manifest, seed: int
) -> dict[str, Any]:
    """The test split, which nothing else has seen, and the baselines fitted on the same training rows."""
    truth, labels, split = rows.test.label_ids, dataset.labels, dataset.split
    served, thresholds = manifest.served, thresholds_of(manifest)
    measured = {
        precision: score_metrics(truth, np.stack([found.probabilities for found in answers]), labels, seed, thresholds)
        for precision, answers in predictions.items()
    }
    texts = [row.text for row in split.train], [row.text for row in split.test]
    baselines = score_baselines(texts[0], rows.train.label_ids, texts[1], truth, labels, seed)
    others = {f"test_{precision}": _without_classes(found) for precision, found in measured.items() if precision != served}
    return {"test": measured[served], **others, "baselines": baselines}


def _look_closer(
    true_ids: Ids, dataset: Dataset, config: TrainConfig, classifier: Classifier, served: Sequence[Prediction]
) -> dict[str, Any]:
    """Parts of the test rows by themselves, and the behavioural suite, of the model that is served."""
    texts = [row.text for row in dataset.split.test]
    predicted_ids = predict(np.stack([found.probabilities for found in served]), thresholds_of(classifier.manifest))
    minimum = minimum_of(dataset.labels) if config.data.task == "single_label" else []

    def labels_of(asked: Sequence[str]) -> list[str]:
        return [join_labels(found.labels) for found in classifier.predict_once(asked)]

    return {
        "slices": text_slices(texts, true_ids, predicted_ids, config.data.slices),
        "behaviour": summarise(measure_behaviour(labels_of, texts, minimum, config.seed)),
    }


def _draw(
    folder: Path,
    dataset: Dataset,
    rows: Tokenized,
    served: Sequence[Prediction],
    history: Sequence[Epoch],
    test: Mapping[str, Any],
) -> None:
    probabilities = np.stack([found.probabilities for found in served])
    truth = rows.test.label_ids
    losses = {
        "training": [(epoch.step, epoch.loss) for epoch in history],
        "validation": [(epoch.step, epoch.validation_loss) for epoch in history],
    }
    scores = {
        "validation accuracy": [(epoch.step, epoch.validation_accuracy) for epoch in history],
        "validation macro-F1": [(epoch.step, epoch.validation_macro_f1) for epoch in history],
    }
    if truth.ndim == 2:
        of_labels = {"labels": plots.labels_png(test["per_class"])}
    else:
        of_labels = {"confusion_matrix": plots.confusion_png(truth, predict(probabilities), dataset.labels)}
    pictures = {
        **of_labels,
        "reliability": plots.reliability_png(truth, probabilities),
        "learning_curve": plots.learning_curve_png(losses, scores),
    }
    for name, png in pictures.items():
        storage.write(str(folder / f"{name}.png"), png)


def publish(registry: Registry, folder: Path, manifest: Manifest) -> tuple[str, FirstAlias]:
    """Into the registry; the first version of a model goes to production, a later one is a candidate for `promote`.

    What a killed run had done of this is not done again.
    """
    there = registry.has(folder, manifest)
    url = storage.to_url(registry.version_url(manifest.name, manifest.version)) if there else registry.publish(folder, manifest)
    for told in get_args(FirstAlias) if there else ():
        if any(change.version == manifest.version for change in registry.alias(manifest.name, told).moves):
            return url, told
    for left in reversed(range(ATTEMPTS)):
        first = registry.alias(manifest.name, "production").version is None
        alias: FirstAlias = "production" if first else "candidate"
        # Not asked again for the first one: who came between would be moved out of production, past the gate.
        before = None if first else registry.alias(manifest.name, alias).version
        reason = "the first bundle" if first else "trained"
        try:
            registry.set_alias(manifest.name, alias, manifest.version, reason, expected=before)
        except RegistryError:  # a run that ended at the same moment was faster
            if not left:
                raise
        else:
            break
    return url, alias


def _without_classes(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "per_class"}


def _summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a run that one compares runs by."""
    chosen = tuple(measures_of(result["test"]))
    scores = {f"test/{key}": result["test"][key] for key in chosen}
    baselines = {f"{name}/{key}": found[key] for name, found in result["baselines"].items() for key in chosen}
    seconds = {f"seconds/{leg}": value for leg, value in result["seconds"].items()}
    return {**scores, **baselines, **seconds, "bundle": result["bundle"], "version": result["version"]}


def _say_result(result: Mapping[str, Any]) -> None:
    rows = {"this model": result["test"], "TF-IDF": result["baselines"]["tfidf"], "majority": result["baselines"]["majority"]}
    measures = measures_of(result["test"])
    say(f"\n{'':12} " + "  ".join(measures.values()))
    for name, found in rows.items():
        say(f"{name:12} " + "  ".join(f"{found[measure]:{len(said)}.4f}" for measure, said in measures.items()))
    _say_decisions(result["decisions"])
    say(f"\n{result['alias']}: {result['bundle']}")
    say("next: `uv run serve`" if result["alias"] == "production" else f"next: `uv run promote candidate={result['version']}`")


def _say_decisions(found: Mapping[str, Any]) -> None:
    test, outside = found["test"], found["out_of_scope"]
    say(f"\naccepted: {test['accepted']['share']:.3f} of the test rows, {test['precision']['share']:.3f} of them right")
    if outside is None:
        say("out of scope: no rule, for want of texts that belong to no label (data.out_of_scope_path)")
    else:
        recall, refused = outside["test"]["recall"], test["out_of_scope"]
        say(
            f"out of scope, by {outside['rule']}: {recall['share']:.3f} of {recall['n']} texts that belong to no label, "
            f"and {refused['share']:.3f} of the test rows (AUROC {outside['test']['auroc']:.3f})"
        )
