"""A real sealed bundle whose skill is chosen: an ONNX graph that adds up what each word says for each label."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from pigeonhole.bundle import GOLDEN, REFERENCE, TOKENIZER, Bundle, Golden, Manifest, Windowing, open_bundle, seal
from pigeonhole.classifier import Classifier
from pigeonhole.training.reference import write_reference

QUEUES = {
    "invoice": "billing",
    "charge": "billing",
    "parcel": "delivery",
    "courier": "delivery",
    "login": "account",
    "password": "account",
}


def keyword_bundle(
    folder: Path,
    version: str,
    words: Mapping[str, str] = QUEUES,
    *,
    weight: float = 3.0,
    provenance: dict[str, Any] | None = None,
    windowing: Windowing | None = None,
    held_out: Sequence[tuple[str, str]] = (),
) -> Bundle:
    """Knows the labels of `words` and answers each word with its label; `weight` is how sure it is.

    `held_out`: texts and labels that drift compares with.
    """
    labels = tuple(sorted(set(words.values())))
    vocabulary = {"[UNK]": 0, **{word: number for number, word in enumerate(words, 1)}}
    table = np.zeros((len(vocabulary), len(labels)), np.float32)
    for word, label in words.items():
        table[vocabulary[word], labels.index(label)] = weight
    folder.mkdir(parents=True)
    onnx.save(_graph(table), folder / "model.onnx")
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / TOKENIZER))
    manifest = Manifest(
        schema_version=1,
        name="keywords",
        version=version,
        created_at="2025-01-01T00:00:00+00:00",
        task="single_label",
        labels=labels,
        max_length=32,
        windowing=windowing or Windowing(),
        temperature=1.0,
        thresholds=dict.fromkeys(labels, 0.5),
        threshold_target=None,
        models={"fp32": "model.onnx"},
        served="fp32",
        parity={},
        metrics={},
        provenance=provenance or {},
        files={},
    )
    classifier = Classifier.load(Bundle(str(folder), folder, manifest))
    text = " ".join(words)
    golden = [Golden(text, {"fp32": [float(logit) for logit in classifier.predict([text])[0].logits]})]
    (folder / GOLDEN).write_bytes(msgspec.json.encode(golden))
    if held_out:
        texts, answers = [text for text, _ in held_out], [label for _, label in held_out]
        write_reference(folder / REFERENCE, texts, answers, classifier.predict(texts), manifest.task)
    seal(folder, manifest)
    return open_bundle(str(folder))


def _graph(table: np.ndarray[Any, np.dtype[np.float32]]) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),  # (b, t, c)
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),  # (b, t)
        helper.make_node("Unsqueeze", ["mask", "last"], ["wide_mask"]),  # (b, t, 1)
        helper.make_node("Mul", ["words", "wide_mask"], ["heard"]),
        helper.make_node("ReduceSum", ["heard", "middle"], ["logits"], keepdims=0),  # (b, c)
        helper.make_node("Identity", ["logits"], ["text_embedding"]),
    ]
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in ("input_ids", "attention_mask")]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", table.shape[1]]) for name in ("logits", "text_embedding")
    ]
    constants = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.array([2]), "last"),
        numpy_helper.from_array(np.array([1]), "middle"),
    ]
    graph = helper.make_graph(nodes, "keywords", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def keyword_rows() -> list[tuple[str, str]]:
    """144 different texts and the queues that they belong to, 48 of each."""
    sentences = ("my {} is wrong", "where is the {}", "no {} since monday", "about a {}", "the {} again", "is this my {}")
    days = ("today", "yesterday", "now", "at noon")
    return [(f"{sentence.format(word)} {day}", label) for word, label in QUEUES.items() for sentence in sentences for day in days]
