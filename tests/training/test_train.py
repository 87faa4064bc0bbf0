import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_rows, train_arguments, write_rows
from tests.serving.conftest import make_bundle
from transformers import MPNetConfig, MPNetForSequenceClassification

from pigeonhole.bundle import Manifest, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.configuration import compose
from pigeonhole.dataset import check_data
from pigeonhole.dataset.config import DataConfig
from pigeonhole.dataset.load import load_dataset
from pigeonhole.errors import BundleError, ConfigError, DataError, NotFoundError, StoppedError
from pigeonhole.evaluation.labelled import read_own_rows, thresholds_of
from pigeonhole.metrics import accuracy, score_metrics
from pigeonhole.registry import Alias, AliasState, Registry
from pigeonhole.training import corridor, export, lora
from pigeonhole.training.batches import TokenizedRows
from pigeonhole.training.calibration import calibrate
from pigeonhole.training.checkpoint import Epoch
from pigeonhole.training.config import TrainConfig
from pigeonhole.training.corridor import make_recipe, publish, validate
from pigeonhole.training.distillation import Distillation, open_teacher
from pigeonhole.training.export import Parity
from pigeonhole.training.lora import add_adapters
from pigeonhole.training.loss import LabelLoss
from pigeonhole.training.model import TextClassifier, load_tokenizer
from pigeonhole.training.pretrained import SCRATCH, Pretrained
from pigeonhole.training.train import run


def test_the_result_names_bundle_metrics_baselines_and_seconds(tiny_run: dict[str, Any]) -> None:
    assert tiny_run["bundle"].startswith("file://")
    assert {"accuracy", "macro_f1", "ece", "intervals", "per_class", "n"} <= set(tiny_run["test"])
    assert set(tiny_run["baselines"]) == {"majority", "tfidf"}
    assert {"data", "training", "export", "total"} <= set(tiny_run["seconds"])
    assert json.loads(json.dumps(tiny_run)) == tiny_run


def test_the_tiny_model_learns_and_the_baselines_are_what_they_are(tiny_run: dict[str, Any]) -> None:
    assert tiny_run["test"]["accuracy"] > 0.8
    assert tiny_run["baselines"]["majority"]["accuracy"] == pytest.approx(1 / 3, abs=0.05)


def test_the_test_metrics_come_out_again_through_the_servers_door(tiny_run: dict[str, Any], tiny_data: Path) -> None:
    split = load_dataset(DataConfig(path=str(tiny_data), val=0.2, test=0.2, trigger_words="report")).split
    classifier = Classifier.open(open_bundle(tiny_run["bundle"]))
    predicted = np.array([found.label_id for found in classifier.predict([row.text for row in split.test])])
    truth = np.array([classifier.labels.index(row.label) for row in split.test])
    assert accuracy(truth, predicted) == tiny_run["test"]["accuracy"]
    assert tiny_run["parity"]["rows"] == len(split.test) + len(split.validation)
    assert tiny_run["parity"]["fp32_max_logit_difference"] < 1e-4


def test_what_is_sealed_was_calibrated_on_the_validation_rows_and_measured_so_on_the_test_rows(tiny_run: dict[str, Any]) -> None:
    bundle = open_bundle(tiny_run["bundle"])
    manifest, split, classifier = bundle.manifest, read_own_rows(bundle)[1].split, Classifier.open(bundle)
    validation, test = ([row.text for row in rows] for rows in (split.validation, split.test))
    ids = [np.array([manifest.labels.index(row.label) for row in rows]) for rows in (split.validation, split.test)]
    expected = calibrate(np.stack([found.logits for found in classifier.predict(validation)]), ids[0], 0)
    assert (manifest.temperature, manifest.vector_scaling) == (expected.temperature, expected.vector)
    assert manifest.temperature != 1
    probabilities = np.stack([found.probabilities for found in classifier.predict(test)])
    measured = score_metrics(ids[1], probabilities, manifest.labels, 0, thresholds_of(manifest))
    assert tiny_run["test"]["ece"] == pytest.approx(measured["ece"])
    scores = pq.read_table(bundle.path("reference.parquet"))["score"].to_numpy()
    assert scores == pytest.approx(probabilities.max(axis=1))


def test_the_run_folder_holds_configuration_origin_history_and_pictures(tiny_run: dict[str, Any]) -> None:
    folder = Path(tiny_run["run"])
    assert "pretrained: scratch" in (folder / "config.yaml").read_text()
    origin = json.loads((folder / "provenance.json").read_text())
    assert {"git_commit", "lock_sha256", "data_sha256", "seed", "threads", "libraries"} <= set(origin)
    history = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    assert [epoch["number"] for epoch in history] == list(range(1, len(history) + 1))
    tracked = [json.loads(line) for line in (folder / "tracking.jsonl").read_text().splitlines()]
    assert tracked[0]["validation_macro_f1"] == history[0]["validation_macro_f1"]
    assert tracked[-1]["summary"]["test/accuracy"] == tiny_run["test"]["accuracy"]
    for name in ("confusion_matrix", "reliability", "learning_curve"):
        assert (folder / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_reference_holds_answers_and_features_but_no_text(tiny_run: dict[str, Any], sealed_bundle: Path) -> None:
    table = pq.read_table(sealed_bundle / "reference.parquet")
    assert "text" not in table.column_names
    assert table.num_rows == tiny_run["test"]["n"]
    assert np.allclose([max(row) for row in table["probabilities"].to_pylist()], table["score"].to_numpy(), atol=1e-6)


def test_the_card_states_metrics_labels_and_origin(sealed_bundle: Path) -> None:
    card = (sealed_bundle / "README.md").read_text()
    assert "| TF-IDF + logistic regression |" in card
    assert "- `billing`: precision" in card


def test_the_first_bundle_goes_to_production_and_the_next_is_a_candidate(
    tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    registry_url = str(Path(tiny_run["run"]).parent / "registry")
    assert tiny_run["alias"] == "production"
    again = run([*train_arguments(tmp_path, tiny_data), f"registry={registry_url}", "trainer.epochs=1", "tracking=none"])
    registry = Registry(registry_url)
    assert again["alias"] == "candidate"
    assert registry.alias("tiny", "production").version == tiny_run["version"]
    assert registry.alias("tiny", "candidate").version == again["version"]


def test_a_path_where_nothing_is_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    lines = """
import sys
from pigeonhole.command import call
from pigeonhole.training import import_model, train
codes = [call(train.run, ["data.path=nowhere.csv"]), call(train.run, ["model.pretrained=nowhere/at/all"])]
print([*codes, call(import_model.run, ["model=/nowhere"])], "torch" in sys.modules)
"""
    told = subprocess.run([sys.executable, "-c", lines], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert told.stdout == "[2, 2, 2] False\n"
    assert [line[:21] for line in told.stderr.splitlines()] == [
        "error: nowhere.csv: t",
        "error: model.pretrain",
        "error: model=/nowhere",
    ]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("out=/proc/x", "out=/proc/x: cannot be written"),
        ("registry=/proc/x", "registry=/proc/x: cannot be written"),
        ("registry=ftp://x/y", "registry=ftp://x/y: cannot be written"),
        ("registry=gs://", "registry=gs://: cannot be written .*no bucket"),
        ("out=gs://bucket/run", "a run works in a local folder"),
        ("model.pretrained=../../etc", "no model is there"),
        ("name=../evil", "name=../evil: expected lower-case letters"),
        ("name=" + "n" * 101, "name=n*: expected lower-case letters, .* at most 100$"),
        ("out=" + "o" * 300, "out=o*: cannot be written .*File name too long"),
        ("tracking.project=\udcff", "tracking.project: holds what is no UTF-8 text"),
        ("export.int8=false", "export.served=int8 with export.int8=false"),
    ],
)
def test_a_mistake_is_told_before_any_work(tiny_data: Path, tmp_path: Path, argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run([*train_arguments(tmp_path, tiny_data), argument])


def test_a_slice_that_is_no_pattern_is_told_before_the_data_are_read(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corridor, "load_dataset", lambda _: pytest.fail("the data were read first"))
    with pytest.raises(ConfigError, match=r"data.slices: '\(' is no regular expression"):
        run([*train_arguments(tmp_path, tiny_data), "data.slices='numbers=('"])


def test_a_compiler_that_is_not_there_is_told_before_the_data_are_read(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corridor, "load_dataset", lambda _: pytest.fail("the data were read first"))
    monkeypatch.setenv("CXX", str(tmp_path / "g++"))
    with pytest.raises(
        ConfigError, match=r"trainer.compile=true: torch.compile needs a C\+\+ compiler, and there is no /.*g\+\+;"
    ):
        run([*train_arguments(tmp_path, tiny_data), "trainer.compile=true"])


def test_a_file_with_a_long_name_gives_the_model_a_shorter_one(tmp_path: Path) -> None:
    data = write_rows(tmp_path / f"{'a' * 99}-{'b' * 120}.csv", tiny_rows())
    arguments = [argument for argument in train_arguments(tmp_path, data) if not argument.startswith("name=")]
    assert corridor._model_name(compose(TrainConfig, "train", arguments)) == "a" * 99


def test_every_number_of_the_recipe_follows_its_key() -> None:
    keys = ["seed=7", "trainer.sampling=balanced", "trainer.precision=fp32", "trainer.compile=true", "trainer.epochs=9"]
    keys += ["trainer.batch_size=7", "trainer.learning_rate=7e-4", "trainer.head_learning_rate=7e-4", "trainer.weight_decay=0.7"]
    keys += ["trainer.warmup=0.7", "trainer.max_grad_norm=7", "trainer.patience=7", "trainer.freeze_word_embeddings=false"]
    keys += ["trainer.average_decay=0.7", "trainer.layer_decay=0.7", "trainer.frozen_layers=7"]
    plain, changed = (asdict(make_recipe(compose(TrainConfig, "train", given))) for given in ([], keys))
    assert not [name for name in plain if plain[name] == changed[name]]


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_every_number_of_the_loss_follows_its_key(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["trainer.label_smoothing=0.2", "trainer.focal_gamma=3", "trainer.class_weights=balanced"]
    keys += [f"trainer.loss={loss}", "trainer.teacher_share=0.4", "trainer.teacher_temperature=5"]
    config, label_ids = compose(TrainConfig, "train", keys), np.array([0, 0, 0, 1])
    random = torch.Generator().manual_seed(0)
    logits, teacher = torch.randn(4, 2, generator=random), torch.randn(4, 2, generator=random)
    monkeypatch.setattr(corridor, "teacher_logits", lambda *_: teacher.numpy())
    rows, dataset = TokenizedRows([[2, 3]] * 4, label_ids), SimpleNamespace(labels=["a", "b"], split=SimpleNamespace(train=[]))
    own = LabelLoss(0.2, np.array([4 / 6, 2.0]), 3.0 if loss == "focal" else 0.0)
    for bundle, expected in ((None, own), (object(), Distillation(own, 0.4, 5.0))):
        begun: Any = SimpleNamespace(dataset=dataset, folder=None, threads=1, teacher=bundle)
        learned, criterion = corridor._targets(config, begun, rows)
        targets = torch.from_numpy(learned.label_ids)
        assert criterion(logits, targets).item() == pytest.approx(expected(logits, targets).item(), rel=1e-6)


def test_a_run_with_adapters_leaves_an_ordinary_encoder_and_their_numbers_follow_the_keys(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[Any] = []

    def add(model: TextClassifier, *numbers: Any) -> None:
        noted.append(numbers)
        add_adapters(model, *numbers)

    monkeypatch.setattr(corridor, "add_adapters", add)
    keys = ["trainer.epochs=1", "trainer.lora_rank=2", "trainer.lora_alpha=3", "trainer.lora_dropout=0.2"]
    found = run([*train_arguments(tmp_path, tiny_data), *keys, "export.min_agreement=0"])
    assert noted == [(2, 3, 0.2)]
    assert found["parity"]["fp32_max_logit_difference"] < 1e-4
    left = load_file(tmp_path / "run/model/model.safetensors")
    assert not [name for name in left if "lora" in name or "base_layer" in name]
    assert {len(left[name]) for name in left if name.endswith("attention.self.query.weight")} == {32}


def test_what_is_sealed_follows_the_keys_of_export_and_serve(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compare = export.compare

    def off(*asked: Any) -> Parity:
        return replace(compare(*asked), fp32_max_logit_difference=0.4, int8_agreement_with_fp32=0.95)

    heard: list[int] = []
    draft = export.draft

    def note(*given: Any, usual: list[list[int]], **named: Any) -> Manifest:
        heard.append(len(usual))
        return draft(*given, usual=usual, **named)

    monkeypatch.setattr(export, "compare", off)
    monkeypatch.setattr(export, "draft", note)
    keys = ["trainer.epochs=0", "export.tolerance=0.5", "export.min_agreement=0.96", "serve.threshold=0.7"]
    found = run([*train_arguments(tmp_path, tiny_data), *keys])
    assert "int8 and fp32 agree on 0.9500 of" in capsys.readouterr().err
    manifest = open_bundle(found["bundle"]).manifest
    assert (manifest.served, manifest.models, manifest.int8_sums_fit) == ("fp32", {"fp32": "model.onnx"}, False)
    assert not [name for name in manifest.files if "int8" in name]
    assert set(manifest.thresholds.values()) == {0.7}
    assert heard == [90]  # of 150 rows those of training: int8 and the order of words hear nothing of the others


def stop_in_second_epoch(epoch: Epoch) -> None:
    if epoch.number == 2:
        raise StoppedError("in the second epoch")


def test_a_trial_is_measured_with_the_head_that_leaves(tiny_data: Path, tmp_path: Path) -> None:
    """The encoder hardly moves and the head is thrown about: the one that is fitted again afterwards is the better one."""
    keys = ["trainer.epochs=1", "trainer.learning_rate=1e-7", "trainer.head_learning_rate=1", "trainer.batch_size=8"]
    seen: list[float] = []
    thrown, fitted = (
        validate(
            compose(TrainConfig, "train", [*train_arguments(tmp_path / refit, tiny_data), *keys, f"trainer.refit_head={refit}"]),
            lambda epoch: seen.append(epoch.validation_macro_f1),
        )
        for refit in ("false", "true")
    )
    assert seen == [thrown, thrown]
    assert fitted > thrown


def test_a_run_goes_on_where_a_dead_label_is_allowed_now(
    tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = train_arguments(tmp_path, tiny_data)
    for allowed in ("false", "true"):
        config = compose(TrainConfig, "train", [*arguments, f"trainer.allow_dead_labels={allowed}"])
        with pytest.raises(StoppedError):
            validate(config, stop_in_second_epoch)
    assert "going on from epoch 2" in capsys.readouterr().err


def test_other_validation_rows_are_another_run(tmp_path: Path) -> None:
    rows = tiny_rows()
    data = write_rows(tmp_path / "rows.csv", [row for place, row in enumerate(rows) if place % 5])
    validation = write_rows(tmp_path / "validation.csv", rows[::5])
    config = compose(TrainConfig, "train", [*train_arguments(tmp_path, data), f"data.validation_path={validation}"])
    with pytest.raises(StoppedError):
        validate(config, stop_in_second_epoch)
    write_rows(validation, rows[::10])
    with pytest.raises(ConfigError, match="holds an unfinished run with another configuration, data"):
        validate(config, stop_in_second_epoch)


def test_an_encoder_that_is_another_one_behind_the_same_name_is_another_run(
    tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path
) -> None:
    encoder = Path(shutil.copytree(Path(tiny_run["run"]) / "model", tmp_path / "encoder"))
    arguments = [f"model.pretrained={encoder}", "model.averaging_layer=false", "trainer.learning_rate=0.001"]
    config = compose(TrainConfig, "train", [*train_arguments(tmp_path, tiny_data), *arguments])
    with pytest.raises(StoppedError):
        validate(config, stop_in_second_epoch)
    weights = load_file(encoder / "model.safetensors")
    save_file({name: 2 * value for name, value in weights.items()}, encoder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="holds an unfinished run with another configuration, data, encoder"):
        validate(config, stop_in_second_epoch)


def test_a_teacher_that_is_another_one_behind_the_same_name_is_another_run(
    tiny_bundle: Path, tiny_data: Path, tmp_path: Path
) -> None:
    config = compose(TrainConfig, "train", [*train_arguments(tmp_path, tiny_data), f"trainer.teacher={tiny_bundle}"])
    with pytest.raises(StoppedError):
        validate(config, stop_in_second_epoch)
    seal(tiny_bundle, msgspec.structs.replace(open_bundle(str(tiny_bundle)).manifest, temperature=9.0))
    with pytest.raises(ConfigError, match="holds an unfinished run with another configuration, data, encoder, teacher"):
        validate(config, stop_in_second_epoch)


@pytest.mark.parametrize(
    ("argument", "error", "message"),
    [
        ("reference_path={other}", ConfigError, "1 of its 1 texts are not in the test split"),
        ("trainer.teacher={other}", BundleError, "this is a file, and a bundle is a folder"),
        ("reference_path={other}.gone", NotFoundError, r"other\.csv\.gone"),
        ("trainer.teacher={other}.gone", BundleError, r"other\.csv\.gone"),
    ],
)
def test_what_else_a_run_reads_is_looked_at_before_anything_is_fitted(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: str, error: type[Exception], message: str
) -> None:
    other = write_rows(tmp_path / "other.csv", [("a text of another file", "billing")])
    monkeypatch.setattr(corridor, "_fit", lambda *_: pytest.fail("it was fitted first"))
    with pytest.raises(error, match=message):
        run([*train_arguments(tmp_path, tiny_data), argument.format(other=other)])


@pytest.fixture(scope="module")
def mpnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of another family."""
    folder = tmp_path_factory.mktemp("mpnet")
    size: dict[str, Any] = {"vocab_size": 2000, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 64}
    MPNetForSequenceClassification(MPNetConfig(num_hidden_layers=2, num_attention_heads=2, **size)).save_pretrained(folder)
    load_tokenizer(Pretrained(SCRATCH, local=True), [text for text, _ in tiny_rows()]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.frozen_layers=2", "trainer.frozen_layers=2: this encoder has 2 layers"),
        ("model.max_length=4 model.windowing=mean model.window_overlap=2", "model.window_overlap=2: .* holds 2 tokens of a text"),
        ("model.max_length=600", "model.max_length=600: this encoder reads at most 512 tokens"),
        ("model.layers=3", "model.layers=3: this encoder has 2 layers"),
        ("model.keep_head=true", "model.keep_head=true: model.pretrained=scratch is no folder"),
        ("model.pretrained={mpnet} model.averaging_layer=true", "model.averaging_layer=true: .* this one is mpnet"),
        (
            "model.pretrained={mpnet} trainer.lora_rank=4",
            "trainer.lora_rank=4: MPNetForSequenceClassification has none of .* adapters, query; it has dense, k, o, q, v; ",
        ),
    ],
)
def test_what_does_not_fit_the_encoder_is_told_before_a_run_folder_is_opened(
    tiny_data: Path, tmp_path: Path, mpnet: Path, monkeypatch: pytest.MonkeyPatch, argument: str, message: str
) -> None:
    monkeypatch.setattr(lora, "ATTENTION", ("query",))  # every family that is taken so far has a name in it
    monkeypatch.setattr(corridor, "open_run_folder", lambda *_, **__: pytest.fail("a run was begun first"))
    given = argument.format(mpnet=mpnet).split()
    with pytest.raises(ConfigError, match=message):
        run([*train_arguments(tmp_path, tiny_data), "model.averaging_layer=false", *given])


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trainer.teacher=registry", "trainer.teacher=registry: is for fine-tuning; with trainer.epochs=0 leave it out"),
        ("trainer.lora_rank=4", "trainer.lora_rank=4: is for fine-tuning; with trainer.epochs=0 leave it out"),
        ("trainer.fit_head_first=false", "trainer.epochs=0 with trainer.fit_head_first=false: nothing would be learned"),
    ],
)
def test_what_fine_tuning_alone_reads_is_refused_where_there_is_none(tmp_path: Path, argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run([*train_arguments(tmp_path, tmp_path / "nothing.csv"), "trainer.epochs=0", argument])


def test_too_few_rows_for_what_is_asked_are_told_at_once_in_the_words_of_check_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    visits = ["a shop in the old town opens late", "is the museum closed on sundays", "what does a ticket for the zoo cost"]
    data = write_rows(tmp_path / "rows.csv", [*tiny_rows(), *((text, "visit") for text in visits)])
    listing = "train + validation + test: 'visit' has 1 + 1 + 1"
    few = f"3 rows have a label with one row or none in a split, where luck decides ({listing})"
    check_data.run([f"data={data}", "data.trigger_words=report", "data.val=0.2", "data.test=0.2"])
    assert f"suspicious: {few} (lines 152, 153, 154)\n" in capsys.readouterr().err
    config = compose(TrainConfig, "train", [*train_arguments(tmp_path, data), "decision.precision=0.9"])
    monkeypatch.setattr(corridor, "open_run_folder", lambda *_, **__: pytest.fail("a run was begun first"))
    with pytest.raises(pytest.fail.Exception):
        corridor.train(config)
    told = capsys.readouterr().err
    assert f"warning: {few}\n" in told
    assert "warning: decision.precision=0.9: 31 validation rows cannot show it, 44 or more could; all is going to be for" in told


def test_a_teacher_that_gives_several_labels_is_refused(tmp_path: Path) -> None:
    manifest = make_bundle(tmp_path / "teacher", "words", "v1")
    seal(tmp_path / "teacher", msgspec.structs.replace(manifest, task="multi_label", accept_score=0.5))
    with pytest.raises(ConfigError, match="is a multi_label bundle; give one with one label for each text"):
        open_teacher(str(tmp_path / "teacher"), manifest.labels)


def test_a_finished_run_is_not_overwritten(tiny_run: dict[str, Any], tiny_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds a finished run"):
        run([*train_arguments(tmp_path, tiny_data), f"out={tiny_run['run']}"])


def test_bad_data_is_refused_with_its_line(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "bad.csv", [*tiny_rows(), ("no label", "")])
    with pytest.raises(DataError, match="line 152"):
        run(train_arguments(tmp_path, data))


def test_a_command_that_the_user_got_wrong_exits_2_with_one_line(tmp_path: Path) -> None:
    code = "from pigeonhole.training.train import main; main()"
    command = [sys.executable, "-c", code, "trainer.learning_rate=abc"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: trainer.learning_rate")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import contextlib, sys; from pigeonhole.training.train import run\n"
        "with contextlib.suppress(SystemExit): run(['--help'])\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'onnxruntime')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "trainer.learning_rate" in done.stdout
    assert done.returncode == 0


def test_a_run_that_was_killed_after_it_had_published_publishes_no_second_version(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    asked = [*train_arguments(tmp_path, tiny_data), "trainer.epochs=1", "tracking=jsonl"]
    with monkeypatch.context() as context:
        context.setattr(Registry, "set_alias", kill)
        with pytest.raises(KeyboardInterrupt):
            run(asked)
    registry = Registry(str(tmp_path / "registry"))
    (version,) = registry.versions("tiny")
    assert registry.test_texts("tiny", version)  # a version that is seen has them
    result = run(asked)
    assert registry.versions("tiny") == [version]
    assert (result["version"], result["alias"]) == (version, "production")
    assert registry.alias("tiny", "candidate").version is None
    manifest = open_bundle(result["bundle"]).manifest
    assert json.loads((Path(result["run"]) / "metrics.json").read_text())["test"] == manifest.metrics["test"]
    assert {"test", "test_fp32", "baselines", "slices", "behaviour", "decisions", "parity", "seconds"} <= set(result)


def test_of_two_runs_that_end_at_one_moment_both_are_published(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    manifests = [make_bundle(tmp_path / f"v{number}", "words", f"v{number}") for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        taken = list(pool.map(lambda found: publish(registry, tmp_path / found.version, found)[1], manifests))
    assert sorted(taken) == ["candidate"] * 5 + ["production"]
    assert len(registry.alias("words", "candidate").history) == 5


def test_a_first_version_does_not_take_the_place_of_one_that_came_while_it_looked(tmp_path: Path) -> None:
    ours, other = (make_bundle(tmp_path / version, "words", version) for version in ("v1", "v2"))

    class Overtaken(Registry):
        def alias(self, name: str, alias: Alias) -> AliasState:
            found = super().alias(name, alias)
            if alias == "production" and found.version is None:
                publish(Registry(self.url), tmp_path / "v2", other)
            return found

    registry = Overtaken(str(tmp_path / "registry"))
    assert publish(registry, tmp_path / "v1", ours)[1] == "candidate"
    assert registry.alias("words", "production").version == "v2"
