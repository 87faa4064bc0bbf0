import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
    XLNetConfig,
)

from pigeonhole.bundle import CARD, GOLDEN, MANIFEST, Manifest, open_bundle
from pigeonhole.classifier import Classifier
from pigeonhole.command import call
from pigeonhole.errors import ConfigError, DataError, ParityError
from pigeonhole.metrics import score_metrics
from pigeonhole.registry import Registry
from pigeonhole.training import export
from pigeonhole.training.config import ExportConfig
from pigeonhole.training.import_model import ImportOptions, run
from pigeonhole.training.model import load_model, load_tokenizer
from pigeonhole.training.pretrained import SCRATCH, Pretrained, locate

TEXTS = ["where is my parcel", "the invoice is wrong", "my password is gone", "hello there again"]
LABELS = {0: "delivery", 1: "billing", 2: "account"}
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "id2label": LABELS,
    "label2id": {label: number for number, label in LABELS.items()},
}


def tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(Pretrained(SCRATCH, local=True), TEXTS)


def save(folder: Path, config: PretrainedConfig) -> Path:
    """A random classifier as save_pretrained leaves it."""
    torch.manual_seed(0)
    body = AutoModelForSequenceClassification.from_config(config)
    for parameter in body.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    body.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved") / "my-model", BertConfig(vocab_size=200, max_position_embeddings=64, **SIZES))


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_what_is_imported_answers_as_torch_does(family: str, saved: Path, tmp_path: Path) -> None:
    folder = saved
    if family == "roberta":
        folder = save(tmp_path / "my-model", RobertaConfig(vocab_size=200, max_position_embeddings=66, pad_token_id=0, **SIZES))
    found = run([f"model={folder}", f"registry={tmp_path / 'registry'}", "max_length=32"])
    assert found is not None
    assert (found["model"], found["alias"], found["served"]) == ("my-model", "production", "fp32")
    assert found["labels"] == list(LABELS.values())
    classifier = Classifier.open(open_bundle(found["bundle"]))
    body = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for text, prediction in zip(TEXTS, classifier.predict(TEXTS), strict=True):
        with torch.no_grad():
            logits = body(**tokenizer()(text, return_tensors="pt")).logits[0]
        assert prediction.logits == pytest.approx(logits.numpy(), abs=1e-4)


def test_it_is_published_where_the_services_look(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIGEONHOLE_REGISTRY", str(tmp_path / "shared"))
    monkeypatch.chdir(tmp_path)
    found = run([f"model={saved}", "name=mine", "max_length=32"])
    assert found is not None
    bundle = Path(found["bundle"].removeprefix("file://"))
    assert bundle.is_relative_to(tmp_path / "shared")
    assert open_bundle(str(bundle)).manifest.models == {"fp32": "model.onnx"}
    card = (bundle / CARD).read_text()
    assert f"imported from `{saved}`" in card
    assert "the softmax of its logits, not calibrated here. Nothing was measured on labelled rows." in card
    assert "over 8 texts; fp32 is served." in card


def test_an_int8_that_answers_otherwise_is_left_out_and_said_to_be(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("message,queue\n" + "".join(f"{text},{LABELS[number % 3]}\n" for number, text in enumerate(TEXTS)))
    monkeypatch.setattr(export, "why_not_int8", lambda parity, least, key: f"agreement is below {key}={least:g}")
    arguments = [f"model={saved}", f"registry={tmp_path / 'registry'}", "max_length=32", f"data={data}", "min_agreement=0.97"]
    found = run([*arguments, "text=message", "label=queue"])
    assert found is not None
    assert "export: agreement is below min_agreement=0.97; int8 is left out, fp32 is served" in capsys.readouterr().err
    bundle = open_bundle(found["bundle"])
    assert (found["served"], set(bundle.manifest.models)) == ("fp32", {"fp32"})
    origin = bundle.manifest.provenance
    assert origin["config"] == {"import.model": str(saved), "import.revision": None, "import.data": str(data)}
    assert "data_sha256" not in origin  # what it was trained on is not known
    assert {path.name for path in bundle.folder.iterdir()} == {*bundle.manifest.files, MANIFEST}
    assert not [name for name in bundle.manifest.files if "int8" in name]
    assert f"Accuracy {found['test']['accuracy']:.3f} on 4 rows given." in (bundle.folder / CARD).read_text()
    assert all(answer["logits"].keys() == {"fp32"} for answer in json.loads((bundle.folder / GOLDEN).read_bytes()))


def test_with_labelled_rows_it_is_measured_and_int8_may_be_served(saved: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "".join(f"{text},{LABELS[number % 3]}\n" for number, text in enumerate(TEXTS)))
    arguments = [f"model={saved}", "name=mine", f"registry={tmp_path / 'registry'}", "max_length=32", f"data={data}"]
    found = run([*arguments, "min_agreement=0.1"])
    assert found is not None
    assert found["served"] == "int8"
    assert found["test"]["n"] == 4
    assert found["parity"]["int8_company_difference"] == 0
    bundle = Path(Registry(str(tmp_path / "registry")).resolve("mine", "production"))
    assert (bundle / "reference.parquet").is_file()
    manifest = msgspec.json.decode((bundle / MANIFEST).read_bytes(), type=Manifest)
    assert set(manifest.models) == {"fp32", "int8"}
    data.write_text("text,label\nhello,weather\n")
    with pytest.raises(DataError, match=r"1 of its labels are unseen .* is label the right column\?"):
        run(arguments)
    data.write_text("message,label\nhello,weather\n")
    with pytest.raises(DataError, match=r"found the columns 'message', 'label'; name the right one with text="):
        run(arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "model=FOLDER_OR_HUB_ID is needed"),
        (["model=../nowhere/at/all"], "model=../nowhere/at/all: no model is there"),
        (["model={saved}", "max_length=65"], "max_length=65: this model reads at most 64 tokens"),
        (["model={saved}", "name=../x"], "name=../x: expected lower-case letters"),
        (["model={saved}", "name=.x"], "name=.x: expected lower-case letters"),
        (["model={saved}", "name=" + "n" * 101], "expected lower-case letters, digits, '.', '_' and '-', at most 100"),
        (["model=scratch"], "model=scratch: is train's word for no model at all; of a folder write ./scratch"),
        (["model=tfidf"], "model=tfidf: is train's word for no model at all"),
        (["model=" + "m" * 300, "name=mine"], "m" * 300),
        (["model=file:///" + "m" * 300, "name=mine"], "m" * 300),
        (["model={saved}", "colour=red"], "there is no key colour"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    saved: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(run, [argument.format(saved=saved) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert (out, err.count("\n")) == ("", 1)


def test_a_model_is_named_by_the_last_part_of_its_place_and_held_to_what_train_is_held_to() -> None:
    assert ImportOptions(model="someone/My Model.v2_").chosen_name == "my-model.v2"
    options, of_train = ImportOptions(), ExportConfig()
    assert (options.tolerance, options.min_agreement) == (of_train.tolerance, of_train.min_agreement)


def test_labels_are_in_the_order_of_their_numbers_and_the_threshold_is_the_one_that_is_asked_for(
    saved: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "my-model"))
    config = json.loads((saved / "config.json").read_text())
    config["id2label"] = dict(reversed(config["id2label"].items()))
    (folder / "config.json").write_text(json.dumps(config))
    found = run([f"model={folder}", f"registry={tmp_path / 'registry'}", "max_length=32", "threshold=0.7"])
    assert found is not None
    manifest = open_bundle(found["bundle"]).manifest
    assert manifest.labels == tuple(LABELS.values())
    assert manifest.thresholds == dict.fromkeys(LABELS.values(), 0.7)


def test_an_export_that_is_farther_from_torch_than_allowed_is_not_published(saved: Path, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    with pytest.raises(ParityError, match=r"at most 1e-12 is allowed \(tolerance\)"):
        run([f"model={saved}", f"registry={registry}", "max_length=32", "tolerance=1e-12"])
    assert not Registry(str(registry)).versions("my-model")


def test_a_registry_that_cannot_be_written_is_told_before_the_export(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "draft", lambda *_, **__: pytest.fail("it was exported first"))
    with pytest.raises(ConfigError, match="registry=/proc/x: cannot be written"):
        run([f"model={saved}", "max_length=32", "registry=/proc/x"])


def test_an_encoder_without_a_trained_head_is_refused(tmp_path: Path) -> None:
    BertModel(BertConfig(vocab_size=200, max_position_embeddings=64, **SIZES)).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"no trained weights for classifier\.bias, classifier\.weight: this is an encoder"):
        run([f"model={tmp_path}", "name=encoder", "max_length=32"])


def test_a_model_that_ends_in_no_known_layer_is_refused_by_the_key_that_names_it_here(tmp_path: Path) -> None:
    save(tmp_path, XLNetConfig(vocab_size=200, d_model=32, n_layer=1, n_head=2, d_inner=48, id2label=LABELS))
    with pytest.raises(ConfigError, match=f"model={tmp_path}: XLNetForSequenceClassification ends in no linear layer"):
        run([f"model={tmp_path}", "name=mine", "max_length=32"])


def test_a_model_of_several_labels_is_one_here_too(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "several")
    config = json.loads((saved / "config.json").read_text())
    config["problem_type"] = "multi_label_classification"
    (tmp_path / "several" / "config.json").write_text(json.dumps(config))
    found = run([f"model={tmp_path / 'several'}", f"registry={tmp_path / 'registry'}", "threshold=0.4", "max_length=64"])
    assert found is not None
    manifest = open_bundle(found["bundle"]).manifest
    assert (manifest.task, manifest.accept_score, set(manifest.thresholds.values())) == ("multi_label", 0.4, {0.5})
    assert "the sigmoid of its logits" in open_bundle(found["bundle"]).path(CARD).read_text()
    data, true_ids = tmp_path / "rows.csv", np.array([[1, 1, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0]])
    answers = (";".join(label for label, given in zip(LABELS.values(), row, strict=True) if given) for row in true_ids)
    data.write_text("text,label\n" + "".join(f"{text},{answer}\n" for text, answer in zip(TEXTS, answers, strict=True)))
    asked = [f"model={tmp_path / 'several'}", f"registry={tmp_path / 'measured'}", "max_length=64", f"data={data}", "seed=3"]
    measured = run([*asked, "label_separator=;", "min_agreement=0"])
    assert measured is not None
    probabilities = [each.probabilities for each in Classifier.open(open_bundle(measured["bundle"])).predict(TEXTS)]
    assert measured["test"] == score_metrics(true_ids, np.stack(probabilities), list(LABELS.values()), 3, np.full(3, 0.5))
    said = Classifier.open(open_bundle(found["bundle"])).predict(["where is my parcel"])[0]
    assert said.probabilities == pytest.approx(1 / (1 + np.exp(-said.logits.astype(np.float64))))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"problem_type": "regression"}, "regression; expected labels for each text, two or more to choose from"),
        ({"id2label": {"0": "a"}}, "a head with one output; expected labels for each text, two or more to choose from"),
        ({"id2label": {"0": "a", "1": "a", "2": "b"}}, "names labels twice"),
        ({"id2label": {"0": "a", "1": "b", "7": "c"}}, "number its labels from 0 on"),
        ({"id2label": ["a", "b", "c"]}, "cannot be loaded"),
        ({"model_type": "no-such-family"}, "cannot be loaded"),
        ({"num_attention_heads": 0}, "cannot be loaded: ZeroDivisionError"),
        ({"hidden_act": "no-such-thing"}, "cannot be loaded: KeyError"),
        ({"hidden_size": "large"}, "cannot be loaded"),
        ({"num_hidden_layers": 0}, "config.json says num_hidden_layers=0"),
        ({"hidden_size": 64}, "are of another shape than config.json says"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.bias, classifier.weight in model.safetensors are of another shape"),
    ],
)
def test_a_configuration_that_a_bundle_cannot_say_is_refused(
    saved: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(ConfigError, match=message):
        run([f"model={tmp_path}", "name=mine", "max_length=32"])


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors", b"", "cannot be loaded: SafetensorError"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1", "cannot be loaded: SafetensorError"),
        ("config.json", b"[]", "cannot be loaded"),
        ("tokenizer.json", b"{", "cannot be loaded: JSONDecodeError"),
        ("tokenizer_config.json", b"{", "cannot be loaded: JSONDecodeError"),
    ],
)
def test_a_damaged_folder_is_refused(saved: Path, tmp_path: Path, file: str, content: bytes, message: str) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ConfigError, match=f"model={tmp_path}: {message}"):
        run([f"model={tmp_path}", "name=mine", "max_length=32"])


def test_a_folder_without_its_tokenizer_or_with_anothers_is_refused(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    words = [f"word{number}" for number in range(300)]
    load_tokenizer(Pretrained(SCRATCH, local=True), [" ".join(words)]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"its tokenizer gives ids up to 3\d\d, the encoder knows 200"):
        run([f"model={tmp_path}", "name=mine", "max_length=32"])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).unlink()
    with pytest.raises(ConfigError, match=f"model={tmp_path}: its tokenizer knows no word"):
        run([f"model={tmp_path}", "name=mine", "max_length=32"])


def test_labels_that_are_numbers_are_words_here(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "numbers")
    config = json.loads((saved / "config.json").read_text())
    (tmp_path / "numbers" / "config.json").write_text(json.dumps({**config, "id2label": {"0": 1, "1": 2, "2": 3}}))
    found = run([f"model={tmp_path / 'numbers'}", f"registry={tmp_path / 'registry'}", "max_length=32"])
    assert found is not None
    assert found["labels"] == ["1", "2", "3"]


def test_a_pickle_is_not_read(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file in saved.iterdir():
        (tmp_path / file.name.replace("model.safetensors", "pytorch_model.bin")).write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match=r"model\.safetensors is missing"):
        run([f"model={tmp_path}", "name=mine"])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub, commit = tmp_path / "models--someone--classifier", "0123456789" * 4
    snapshot = Path(shutil.copytree(saved, hub / "snapshots" / commit))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text(commit)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model=someone/classifier: cannot be loaded: .* model\.safetensors"):
        run(["model=someone/classifier", "max_length=32"])


def test_code_of_the_models_own_is_not_run(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "my-model"))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was run')!r}, 'w').close()\n")
    for file, names in (
        ("config.json", {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": [None, "own.T"]}),
    ):
        said = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({**said, "auto_map": names}))
    assert run([f"model={folder}", f"registry={tmp_path / 'registry'}", "max_length=32"]) is not None
    found = locate(str(folder), None)
    load_model(found, ["a", "b"], load_tokenizer(found, []), averaging_layer=False, max_length=32)
    assert not (tmp_path / "was run").exists()
