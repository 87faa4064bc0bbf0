import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    PretrainedConfig,
    RobertaConfig,
)

from pigeonhole.bundle import Precision
from pigeonhole.classifier import Packed, session_options
from pigeonhole.training.model import TextClassifier, take_apart
from pigeonhole.training.packed import write_packed
from pigeonhole.training.weights import read_weights

SIZES: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_labels": 3,
}
DISTILBERT_SIZES: dict[str, Any] = {"n_layers": 2, "n_heads": 2, "dim": 32, "hidden_dim": 48, "num_labels": 3}
FAMILIES = {
    "bert": BertConfig(vocab_size=60, max_position_embeddings=128, **SIZES),
    "roberta": RobertaConfig(vocab_size=60, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1, **SIZES),
    "distilbert": DistilBertConfig(vocab_size=60, max_position_embeddings=128, **DISTILBERT_SIZES),
}
ROWS = [np.random.default_rng(length).integers(3, 60, length).tolist() for length in (3, 7, 16, 17, 31, 32, 33, 64, 100, 7)]


def random_classifier(config: PretrainedConfig) -> TextClassifier:
    torch.manual_seed(0)
    body = AutoModelForSequenceClassification.from_config(config).eval()
    for parameter in body.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))  # biases and norms begin as zeros and ones
    return take_apart(body)


def logits_of(file: Path, rows: list[list[int]], *, sums_fit: bool = True) -> NDArray[np.float32]:
    session, layout = ort.InferenceSession(file, session_options(1, sums_fit=sums_fit)), Packed()
    widths = [layout.width(len(row)) for row in rows]
    found = np.zeros((len(rows), 3), np.float32)
    for width in set(widths):
        chosen = [number for number, each in enumerate(widths) if each == width]
        found[chosen] = session.run(["logits"], dict(layout.inputs([rows[number] for number in chosen], width)))[0]
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_the_packed_graph_gives_the_logits_of_torch(family: str, tmp_path: Path) -> None:
    model = random_classifier(FAMILIES[family])
    weights = read_weights(model)
    assert weights is not None
    write_packed(weights, tmp_path / "model.onnx", "fp32", ROWS)
    with torch.no_grad():
        expected = [model(torch.tensor([row]), torch.ones(1, len(row), dtype=torch.int64))[0][0].numpy() for row in ROWS]
    assert logits_of(tmp_path / "model.onnx", ROWS) == pytest.approx(np.stack(expected), abs=2e-5)


def test_the_weights_are_in_a_file_of_their_own_and_give_the_same_bits_from_within(tmp_path: Path) -> None:
    weights = read_weights(random_classifier(FAMILIES["bert"]))
    assert weights is not None
    write_packed(weights, tmp_path / "model.onnx", "int8", ROWS)
    onnx.save(onnx.load(tmp_path / "model.onnx"), tmp_path / "inside.onnx")
    assert np.array_equal(logits_of(tmp_path / "model.onnx", ROWS), logits_of(tmp_path / "inside.onnx", ROWS))
    beside = tmp_path / "model.onnx.data"
    assert beside.stat().st_size > weights.words.size
    assert sys.platform == "win32" or stat.S_IMODE(beside.stat().st_mode) == 0o644
    beside.unlink()
    with pytest.raises(Exception, match=r"model\.onnx\.data"):  # onnxruntime's errors share no base class
        ort.InferenceSession(tmp_path / "model.onnx")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_words_that_come_stand_side_by_side_and_answers_are_the_same_bits(precision: Precision, tmp_path: Path) -> None:
    weights = read_weights(random_classifier(FAMILIES["bert"]))
    assert weights is not None
    usual = [[50, 7, 50], [7, 50, 3]]
    write_packed(weights, tmp_path / "as_they_are.onnx", precision, ROWS)
    write_packed(weights, tmp_path / "common_first.onnx", precision, ROWS, usual)
    as_they_are, common_first = (logits_of(tmp_path / f"{name}.onnx", ROWS) for name in ("as_they_are", "common_first"))
    assert np.array_equal(as_they_are, common_first)
    constants = {each.name: numpy_helper.to_array(each) for each in onnx.load(tmp_path / "common_first.onnx").graph.initializer}
    assert constants["word"][[50, 7, 3]].tolist() == [0, 1, 2]
    if precision == "fp32":
        assert np.array_equal(constants["words"][constants["word"]], weights.words)


def test_int8_stays_near_fp32_and_an_answer_is_the_same_in_any_company(tmp_path: Path) -> None:
    weights = read_weights(random_classifier(FAMILIES["bert"]))
    assert weights is not None
    found = {}
    for precision in ("fp32", "int8"):
        file = tmp_path / f"{precision}.onnx"
        write_packed(weights, file, "int8" if precision == "int8" else "fp32", ROWS)
        found[precision] = logits_of(file, ROWS)
        for number, row in enumerate(ROWS):
            assert np.array_equal(logits_of(file, [row])[0], found[precision][number])
    assert np.abs(found["int8"] - found["fp32"]).max() < 0.05 * np.abs(found["fp32"]).max()


def test_products_of_int8_fit_into_16_bits_in_pairs_so_that_each_cpu_adds_them_exactly(tmp_path: Path) -> None:
    """A CPU with VNNI never cuts them off: there, only what is said of the pairs can fail."""
    model = random_classifier(FAMILIES["bert"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("weight") and "dense" in name:
                value.copy_(0.02 + value.abs())  # those of a pair are one another's like, and add up
    weights = read_weights(model)
    assert weights is not None
    write_packed(weights, tmp_path / "model.onnx", "int8", ROWS)
    graph = onnx.load(tmp_path / "model.onnx").graph
    constants = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
    multiplied = [constants[node.input[1]] for node in graph.node if node.op_type == "MatMulIntegerToFloat"]
    pairs = [weight.reshape(-1, 2, weight.shape[1]).sum(axis=1, dtype=int) for weight in multiplied]
    assert len(pairs) == 8  # four a layer
    assert 120 < max(int(np.abs(pair).max()) for pair in pairs) <= 128
    exact, found = (logits_of(tmp_path / "model.onnx", ROWS, sums_fit=sums_fit) for sums_fit in (False, True))
    assert np.array_equal(exact, found)


def differences(model: TextClassifier, samples: list[list[int]], folder: Path) -> NDArray[np.float32]:
    """Of int8's logits from those of fp32, where texts differ by 1; `samples` tell int8 its ranges."""
    weights = read_weights(model)
    assert weights is not None
    write_packed(weights, folder / "fp32.onnx", "fp32", samples)
    write_packed(weights, folder / "int8.onnx", "int8", samples)
    fp32, int8 = (logits_of(folder / f"{precision}.onnx", ROWS) for precision in ("fp32", "int8"))
    return np.asarray(np.abs(int8 - fp32) / fp32.std(axis=0).mean(), np.float32)


@pytest.mark.parametrize(
    ("weight", "bias", "most"),
    [
        (1.0, 3.0, 0.017),  # 0.022 where channels are not centred
        (4.0, 0.0, 0.027),  # 0.029 where loud channels are not softened
    ],
)
def test_a_channel_that_is_loud_in_every_text_does_not_drown_the_others_in_int8(
    weight: float, bias: float, most: float, tmp_path: Path
) -> None:
    model = random_classifier(FAMILIES["bert"])
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "LayerNorm" in name and "layer.1.output" not in name:
                value[3] = weight if name.endswith("weight") else bias
    assert differences(model, ROWS, tmp_path).mean() < most


@pytest.mark.parametrize(
    "config",
    [
        ElectraConfig(vocab_size=60, embedding_size=32, **SIZES),
        BertConfig(vocab_size=60, hidden_act="relu", **SIZES),
    ],
)
def test_a_body_that_is_built_otherwise_is_left_to_the_tracer(config: PretrainedConfig) -> None:
    torch.manual_seed(0)
    body = AutoModelForSequenceClassification.from_config(config)
    model = TextClassifier(body, "classifier", torch.nn.Linear(32, 3))
    assert read_weights(model) is None


def test_what_a_text_shorter_than_the_narrowest_view_is_packed_to() -> None:
    inputs = Packed().inputs([[5, 6], [7, 8, 9]], 4)
    assert inputs["input_ids"].tolist() == [5, 6, 7, 8, 9]
    assert inputs["view"].tolist() == [[0, 1, -1, -1], [2, 3, 4, -1]]
    assert inputs["place"].tolist() == [0, 1, 4, 5, 6]
    assert [Packed().width(n_tokens) for n_tokens in (2, 16, 17, 32, 33, 64, 65, 512)] == [16, 16, 32, 32, 64, 64, 128, 512]
