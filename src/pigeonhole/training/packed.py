"""The padding-free graph: the tokens of all texts in one row, linear layers over real tokens only, attention on a gathered view.

Inputs (n tokens, b texts, t places a text; classifier.py makes them): `input_ids` (n,), the tokens, one text after the other;
`view` (b, t), which of them stands at which place of its text, -1 where there is none; `place` (n,), where each of them stands
in the flattened view. A row of a linear layer is computed by itself and attention text by text, so an answer is the same, bit for
bit, in any company, as long as the view has the same width.

In int8 a linear layer has a scale for each output, and its sums are of integers, exact in any order and on any CPU. What a layer
norm or the attention gives keeps to a range that some sample texts tell, so its scale is part of the graph: a layer norm's
channels are centred, which the biases behind it take back, and those that are loud in every text are softened and their weights
multiplied instead (SmoothQuant; Xiao et al. 2023). What GELU gives keeps to no range, and has a scale for each token, computed
as it runs.

The word embeddings stand in the order in which words are common: those that come share a few pages of the mapped file, and the
others never become memory.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pigeonhole.bundle import WEIGHTS, Precision
from pigeonhole.classifier import OUTPUTS, Packed
from pigeonhole.training.weights import Array, Dense, Layer, Norm, Weights

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
OPSET = 21  # the first whose QuantizeLinear takes a scale for each row at int8
# Added to the attention paid to a place without a token: exp(-60) is lost in any sum with 1, and no denormal number, which a CPU
# computes with a hundred times more slowly (22 % of int8's time with -1e9).
NEVER = -60.0
GELU_LEAST = np.float32(0.17)  # gelu(x) >= -0.17
# Of the range that the samples tell: what is cut off costs more than coarser steps (0.8: five times the difference of a logit).
MARGIN = np.float32(1.05)
SOFTNESS = 0.8  # the share of a channel's loudness that its weights take over; 0.65 and 1.0 are 5 and 20 % farther from fp32


@dataclass(frozen=True)
class Reading:
    """What linear layers read: a name in the graph, and in int8 how its numbers are to be understood.

    A number is (the whole number - zero) * scale * loud of its channel + centre of its channel.
    """

    name: str
    scale: np.float32
    zero: str = ""
    loud: Array | float = 1.0  # (i,)
    centre: Array | float = 0.0  # (i,)


Range = tuple[Array, Array]
"""The least and the largest number of each channel, (i,) each."""


def write_packed(
    weights: Weights,
    path: Path,
    precision: Precision,
    samples: Sequence[Sequence[int]],
    usual: Iterable[Sequence[int]] = (),
) -> None:
    """Into a new file, and its weights into another one beside it.

    Token ids of texts: in int8 `samples` tell what range numbers keep to, `usual` tells which words are common.
    """
    size = weights.attention_heads, weights.words.shape[1]
    graph = _Graph(*size) if precision == "fp32" else _Int8Graph(*size, _ranges(weights, samples))
    common = _common_first(usual, len(weights.words))
    graph.number_words(common)
    embedding = _embedding_of(graph, replace(weights, words=weights.words[common]))  # (b, d)
    graph.node("Identity", embedding, output="text_embedding")
    graph.node(
        "Gemm",
        embedding,
        graph.constant(weights.head.weight, "head.weight"),
        graph.constant(weights.head.bias, "head.bias"),
        output="logits",
    )
    outputs: dict[str, list[str | int]] = {"logits": ["b", len(weights.head.bias)], "text_embedding": ["b", graph.d]}
    assert set(outputs) == set(OUTPUTS)
    graph.save(path, outputs)


def _common_first(texts: Iterable[Sequence[int]], v: int) -> NDArray[np.int64]:
    """(v,): all token ids, those that come most often in `texts` first."""
    counts = np.bincount(np.fromiter(chain.from_iterable(texts), np.int64), minlength=v)
    return np.argsort(-counts, kind="stable")


def _ranges(weights: Weights, samples: Sequence[Sequence[int]]) -> list[Range]:
    """Of what `_Graph.norm` and `_Graph.attended` are asked for, in the order in which they are."""
    graph = _Listening(weights.attention_heads, weights.words.shape[1])
    _embedding_of(graph, weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "listening.onnx"
        graph.save(path, {name: [graph.d] for name in graph.heard})
        session = ort.InferenceSession(path)
        # One at a time: 62 texts of 512 tokens side by side are 0.8 GB of attention in each of several tensors.
        runs = [session.run(graph.heard, dict(Packed().inputs([sample], len(sample)))) for sample in samples]
    least, largest = (np.array([run[turn::2] for run in runs], np.float32) for turn in (0, 1))  # (texts, heard / 2, i) each
    return list(zip(least.min(axis=0), largest.max(axis=0), strict=True))


def _embedding_of(graph: "_Graph", weights: Weights) -> str:
    places = _Places(graph)
    x = graph.add(graph.words(weights.words), graph.node("Gather", graph.constant(weights.positions), places.position))
    x = graph.norm(x, weights.norm)  # (n, d)
    for layer in weights.layers[:-1]:
        heard = _query(graph, layer), layer.key, layer.value
        query, key, value = places.views(graph.dense(graph.read(x, *heard), *heard), 3)
        attended = places.back(_attend(graph, places.mask, query, key, value))
        y = graph.dense(graph.attended(attended), layer.attended, beside=x)
        x = _rest(graph, layer, y, x)
    last = weights.layers[-1]
    asked = _query(graph, last)
    read = graph.read(x, asked, last.key, last.value)
    query = places.one_place(graph.dense(graph.rows(read, places.first), asked))  # of the last layer, only what the pooler reads
    key, value = places.views(graph.dense(read, last.key, last.value), 2)
    attended = places.join(_attend(graph, places.mask_of_one, query, key, value))
    # A row a text costs next to nothing in fp32, and an averaging layer has all that it heard in here: half of int8's difference.
    x = graph.residual_rows(x, places.first)
    x = _rest(graph, last, graph.exact(attended, last.attended, beside=x), x)
    return graph.node(weights.pooler_activation, graph.exact(x, weights.pooler))


def _query(graph: "_Graph", layer: Layer) -> Dense:
    """With the scale of the attention in its weights."""
    scale = np.float32(1 / np.sqrt(graph.d / graph.heads))
    return Dense(layer.query.weight * scale, layer.query.bias * scale)


def _attend(graph: "_Graph", mask: str, query: str, key: str, value: str) -> str:
    """-> (b, h, t or 1, d/h)."""
    scores = graph.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1)
    share = graph.node("Softmax", graph.add(scores, mask), axis=-1)
    return graph.node("MatMul", share, value)


def _rest(graph: "_Graph", layer: Layer, attended: str, x: str) -> str:
    x = graph.norm(graph.add(attended, x), layer.attended_norm)
    up = graph.node("Gelu", graph.dense(graph.read(x, layer.up), layer.up))
    return graph.norm(graph.add(graph.dense_of_gelu(up, layer.down, beside=x), x), layer.norm)


class _Graph:
    """Nodes and constants as they are made."""

    def __init__(self, heads: int, d: int) -> None:
        self.heads = heads
        self.d = d
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._word = "input_ids"  # (n,): the row of the word embeddings

    def constant(self, value: NDArray[np.generic] | np.generic, name: str = "") -> str:
        name = name or f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def node(self, operator: str, *inputs: str, output: str = "", domain: str = "", **attributes: Any) -> str:
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [output], name=output, domain=domain, **attributes))
        return output

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def number_words(self, order: NDArray[np.int64]) -> None:
        """The rows of the word embeddings are going to be those of these token ids, (v,)."""
        row = np.empty(len(order), np.int32)
        row[order] = np.arange(len(order))
        self._word = self.node("Gather", self.constant(row, "word"), "input_ids")

    def words(self, words: Array) -> str:
        return self.node("Gather", self.constant(words, "words"), self._word)

    def norm(self, x: str, norm: Norm) -> str:
        """ONNX Runtime's fused SkipLayerNormalization, which adds first, takes three times as long (300 against 100 us)."""
        return self.node(
            "LayerNormalization", x, self.constant(norm.weight), self.constant(norm.bias), axis=-1, epsilon=norm.epsilon
        )

    def read(self, x: str, *layers: Dense) -> Reading:
        """A layer norm's x, for these layers."""
        return Reading(x, np.float32(1))

    def attended(self, x: str) -> Reading:
        return Reading(x, np.float32(1))

    def rows(self, read: Reading, which: str) -> Reading:
        return replace(read, name=self.node("Gather", read.name, which))

    def residual_rows(self, x: str, which: str) -> str:
        """Of a layer norm's x."""
        return self.node("Gather", x, which)

    def dense(self, read: Reading, *layers: Dense, beside: str = "") -> str:
        """The layers' outputs, one after the other; `beside`: the layer norm's x that they are going to be added to."""
        return self.exact(read.name, _joined(layers), beside)

    def dense_of_gelu(self, x: str, dense: Dense, beside: str) -> str:
        return self.exact(x, dense, beside)

    def exact(self, x: str, dense: Dense, beside: str = "") -> str:
        return self.node("Gemm", x, self.constant(dense.weight), self.constant(dense.bias))

    def save(self, path: Path, outputs: Mapping[str, Sequence[int | str]]) -> None:
        """`outputs`: shapes by name."""
        shapes = {"input_ids": ["n"], "place": ["n"], "view": ["b", "t"]}
        graph = helper.make_graph(
            self._nodes,
            "packed",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        weights = path.with_name(path.name + WEIGHTS)
        # A file of weights is mapped, not copied: an fp32 MiniLM opens in 0.07 s at a peak of 111 MB, not in 0.17 at 196.
        onnx.save_model(model, path, save_as_external_data=True, location=weights.name)
        weights.chmod(0o644)  # it was made as a temporary file; a service is another user


class _Listening(_Graph):
    """The same, and `heard`: by turns the least and the largest number of each channel."""

    def __init__(self, heads: int, d: int) -> None:
        super().__init__(heads, d)
        self.heard: list[str] = []

    def norm(self, x: str, norm: Norm) -> str:
        return self._hear(super().norm(x, norm))

    def attended(self, x: str) -> Reading:
        return super().attended(self._hear(x))

    def _hear(self, x: str) -> str:
        self.heard += [self.node(operator, x, self.integers(0), keepdims=0) for operator in ("ReduceMin", "ReduceMax")]
        return x


class _Int8Graph(_Graph):
    """The same, with the word embeddings and the linear layers over tokens in int8; a layer norm's x is less its centre."""

    def __init__(self, heads: int, d: int, ranges: Sequence[Range]) -> None:
        super().__init__(heads, d)
        self._ranges = iter(ranges)
        self._centres: dict[str, Array] = {}
        self._loudness: dict[str, Array] = {}
        self._last = self.integers(-1)
        self._one = self.constant(np.float32(1))

    def words(self, words: Array) -> str:
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-10) / 127
        rows = self.node("Gather", self.constant(np.round(words / scale).astype(np.int8), "words"), self._word)
        scales = self.node("Gather", self.constant(scale.astype(np.float32)), self._word)
        return self.node("Mul", self.node("Cast", rows, to=TensorProto.FLOAT), scales)

    def norm(self, x: str, norm: Norm) -> str:
        least, largest = next(self._ranges)
        centre = (least + largest) / np.float32(2)
        found = super().norm(x, Norm(norm.weight, norm.bias - centre, norm.epsilon))
        self._centres[found], self._loudness[found] = centre, np.maximum(largest - centre, np.float32(1e-6))
        return found

    def read(self, x: str, *layers: Dense) -> Reading:
        loudness = self._loudness[x]
        loud = loudness**SOFTNESS / np.maximum(np.abs(_joined(layers).weight).max(axis=1), 1e-6) ** (1 - SOFTNESS)
        scale = MARGIN * (loudness / loud).max() / np.float32(127)
        softened = self.node("Mul", x, self.constant((1 / (loud * scale)).astype(np.float32)))
        zero = self.constant(np.uint8(128))
        return Reading(self.node("QuantizeLinear", softened, self._one, zero), scale, zero, loud, self._centres[x])

    def attended(self, x: str) -> Reading:
        least, largest = next(self._ranges)
        low, high = min(least.min(), np.float32(-1e-6)) * MARGIN, max(largest.max(), np.float32(1e-6)) * MARGIN
        scale = (high - low) / np.float32(255)
        zero = self.constant(np.uint8(np.round(-low / scale)))
        return Reading(self.node("QuantizeLinear", x, self.constant(scale), zero), scale, zero)

    def residual_rows(self, x: str, which: str) -> str:
        found = super().residual_rows(x, which)
        self._centres[found] = self._centres[x]
        return found

    def dense(self, read: Reading, *layers: Dense, beside: str = "") -> str:
        dense = _joined(layers)
        loud, centre = (np.broadcast_to(each, len(dense.weight)) for each in (read.loud, read.centre))
        weight, scale = _rounded(dense.weight * loud[:, None])
        bias = dense.bias + (centre @ dense.weight).astype(np.float32) + self._centre(beside)
        return self._times(read.name, read.zero, weight, scale * read.scale, bias)

    def dense_of_gelu(self, x: str, dense: Dense, beside: str) -> str:
        """Of x + GELU_LEAST as uint8 from 0 on; what the products get too much is taken off the bias."""
        raised = self.add(x, self.constant(GELU_LEAST))
        steps = self.constant(np.float32(1 / 255))
        scale = self.node("Mul", self.node("ReduceMax", raised, self._last, keepdims=1), steps)  # (n, 1)
        quantized = self.node("QuantizeLinear", raised, self.node("Squeeze", scale, self._last), axis=0)
        weight, weight_scale = _rounded(dense.weight)
        product = self._times(quantized, self.constant(np.uint8(0)), weight, weight_scale)
        bias = dense.bias - GELU_LEAST * weight.sum(axis=0, dtype=np.float32) * weight_scale + self._centre(beside)
        return self.add(self.node("Mul", product, scale), self.constant(bias))

    def exact(self, x: str, dense: Dense, beside: str = "") -> str:
        centre = self._centre(x, len(dense.weight)) @ dense.weight
        return super().exact(x, Dense(dense.weight, dense.bias + centre + self._centre(beside)))

    def _centre(self, x: str, i: int = 1) -> Array:
        """(i,): what a layer norm's x is short of; zeros for anything else."""
        return self._centres.get(x, np.zeros(i, np.float32))

    def _times(self, x: str, zero: str, weight: NDArray[np.int8], scale: Array, bias: Array | None = None) -> str:
        """(x - zero) @ weight * scale + bias."""
        behind = [] if bias is None else ["", self.constant(bias.astype(np.float32))]
        inputs = x, self.constant(weight), self._one, self.constant(scale.astype(np.float32)), zero, *behind
        return self.node("MatMulIntegerToFloat", *inputs, domain=MICROSOFT)


def _joined(layers: Sequence[Dense]) -> Dense:
    return Dense(np.concatenate([each.weight for each in layers], axis=1), np.concatenate([each.bias for each in layers]))


def _rounded(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """(i, o) -> as int8, and the scale of each output (o,).

    An input and the next one have at most 128 together: a CPU without VNNI adds their products with two uint8 in 16 bits, where
    more would be cut off.
    """
    pairs = weight[: len(weight) // 2 * 2].reshape(-1, 2, weight.shape[1]).sum(axis=1)
    largest = np.maximum(np.abs(weight).max(axis=0), np.abs(pairs).max(axis=0, initial=0))
    scale = (np.maximum(largest, 1e-10) / 127).astype(np.float32)
    return np.round(weight / scale).astype(np.int8), scale


class _Places:
    """From the row of tokens to the view and back, as gathers of (d/h)-wide pieces: no transposes, no copies of padding."""

    def __init__(self, graph: _Graph) -> None:
        self._graph = graph
        node, heads = graph.node, graph.heads
        width = node("Gather", node("Shape", "view"), graph.constant(np.int64(1)))  # t
        text, self.position = node("Div", "place", width), node("Mod", "place", width)  # (n,), (n,)
        one, count = graph.integers(1), graph.constant(np.int64(heads))
        beginning = node("Slice", "view", graph.integers(0), one, one)
        self.first = node("Squeeze", beginning, one)  # (b,): each text's first token
        no_token = node("Less", "view", graph.constant(np.int64(0)))
        mask = node("Where", no_token, graph.constant(np.float32(NEVER)), graph.constant(np.float32(0)))
        self.mask_of_one = node("Unsqueeze", mask, graph.integers(1, 2))  # (b, 1, 1, t)
        # Adding one row of t numbers at a time takes three times as long: 34 us a layer for 9 texts, 3 % of an int8 pass.
        self.mask = node("Expand", self.mask_of_one, node("Concat", graph.integers(1, 1), width, one, axis=0))  # (b, 1, t, t)
        # A place without a token shows its own text's first one: nothing of another text is near an answer, not even times 0.
        token = node("Unsqueeze", node("Where", no_token, beginning, "view"), one)  # (b, 1, t)
        head = np.arange(heads, dtype=np.int64)[None]
        self._token, self._head = token, head[:, :, None]
        text_and_head = node("Add", node("Unsqueeze", node("Mul", text, count), one), graph.constant(head))
        self._to_tokens = node(
            "Add", node("Mul", text_and_head, width), node("Unsqueeze", self.position, one)
        )  # (n, h) of (b h t)
        self._pieces, self._whole = graph.integers(-1, graph.d // heads), graph.integers(-1, graph.d)
        self._one_place = graph.integers(-1, heads, 1, graph.d // heads)
        self._to_views: dict[int, list[str]] = {}

    def views(self, x: str, count: int) -> list[str]:
        """(n, count d) -> `count` times (b, h, t, d/h)."""
        node, constant = self._graph.node, self._graph.constant
        pieces = node("Reshape", x, self._pieces)  # (n count h, d/h)
        if count not in self._to_views:
            token = node("Mul", self._token, constant(np.int64(count * self._graph.heads)))
            heads = [constant(self._head + number * self._graph.heads) for number in range(count)]
            self._to_views[count] = [node("Add", token, each) for each in heads]  # (b, h, t) of (n count h)
        return [node("Gather", pieces, to_view) for to_view in self._to_views[count]]

    def back(self, x: str) -> str:
        """(b, h, t, d/h) -> (n, d)."""
        return self.join(self._graph.node("Gather", self._graph.node("Reshape", x, self._pieces), self._to_tokens))

    def one_place(self, x: str) -> str:
        """(b, d) -> (b, h, 1, d/h)."""
        return self._graph.node("Reshape", x, self._one_place)

    def join(self, x: str) -> str:
        """(n, h, d/h) or (b, h, 1, d/h) -> (n, d) or (b, d)."""
        return self._graph.node("Reshape", x, self._whole)
