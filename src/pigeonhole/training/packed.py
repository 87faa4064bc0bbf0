"""The padding-free graph: the tokens of all texts in one row, linear layers over real tokens only, attention on a gathered view.

Inputs (n tokens, b texts, t places a text; classifier.py makes them): `input_ids` (n,), the tokens, one text after the other;
`view` (b, t), which of them stands at which place of its text, -1 where there is none; `place` (n,), where each of them stands
in the flattened view. A row of a linear layer is computed by itself and attention text by text, so an answer is the same, bit for
bit, in any company, as long as the view has the same width.

In int8 a linear layer has a scale for each output and, computed as it runs, for each token: sums of integers, exact in any order.
A token's scale is that of its largest number, so two things are done for the others: the few channels of a layer norm that are
loud in every text are softened and their weights multiplied instead (SmoothQuant; Xiao et al. 2023), and what GELU gives has all
256 steps, for it is never far below 0. On tickets the mean difference of a logit falls from 0.33 to 0.20 (they spread by 13).
"""

import tempfile
from collections.abc import Mapping, Sequence
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
GELU_LEAST = 0.17  # gelu(x) >= -0.17


def write_packed(weights: Weights, path: Path, precision: Precision, samples: Sequence[Sequence[int]]) -> None:
    """Into a new file, and its weights into another one beside it. In int8 `samples`, token ids, tell what is loud."""
    size = weights.attention_heads, weights.words.shape[1]
    graph = _Graph(*size) if precision == "fp32" else _Int8Graph(*size, _loudness(weights, samples))
    embedding = _embedding_of(graph, weights)  # (b, d)
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


def _loudness(weights: Weights, samples: Sequence[Sequence[int]]) -> list[Array]:
    """The largest size of each channel, (d,), after each layer norm, in the order in which they come."""
    graph = _Listening(weights.attention_heads, weights.words.shape[1])
    _embedding_of(graph, weights)
    inputs = Packed().inputs(samples, max(map(len, samples)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "listening.onnx"
        graph.save(path, {name: [graph.d] for name in graph.heard})
        heard = ort.InferenceSession(path).run(graph.heard, dict(inputs))
    return [np.asarray(found, np.float32) for found in heard]


def _embedding_of(graph: "_Graph", weights: Weights) -> str:
    places = _Places(graph)
    x = graph.add(graph.words(weights.words), graph.node("Gather", graph.constant(weights.positions), places.position))
    x = graph.norm(x, weights.norm)  # (n, d)
    for layer in weights.layers[:-1]:
        read, loud = _read(graph, layer, x)
        attended = places.back(_attend(graph, places, layer, places.heads(_query(graph, layer, read, loud)), read, loud))
        x = _rest(graph, layer, graph.product(attended, layer.attended.weight), x)
    last = weights.layers[-1]
    first = graph.node("Gather", x, places.first)  # (b, d): of the last layer, only what the pooler reads
    read, loud = _read(graph, last, x)
    query = places.one_place(_query(graph, last, graph.node("Gather", read, places.first), loud))
    attended = places.join(_attend(graph, places, last, query, read, loud))
    # A row a text costs next to nothing in fp32, and an averaging layer has all that it heard in here: half of int8's difference.
    x = _rest(graph, last, graph.node("MatMul", attended, graph.constant(last.attended.weight)), first)
    return graph.node(weights.pooler_activation, graph.exact(x, weights.pooler))


def _read(graph: "_Graph", layer: Layer, x: str) -> tuple[str, Array]:
    """What queries, keys and values are made of."""
    return graph.softened(x, np.concatenate([layer.query.weight, layer.key.weight, layer.value.weight], axis=1))


def _query(graph: "_Graph", layer: Layer, read: str, loud: Array) -> str:
    """With the scale of the attention in its weights."""
    scale = np.float32(1 / np.sqrt(graph.d / graph.heads))
    return graph.dense(read, Dense(layer.query.weight * loud * scale, layer.query.bias * scale))


def _attend(graph: "_Graph", places: "_Places", layer: Layer, query: str, read: str, loud: Array) -> str:
    """-> (b, h, t or 1, d/h).

    The values' bias goes through the average as it is: `_rest` adds it. The keys' bias changes nothing: it adds the same to all
    that a query is compared with.
    """
    weight = np.concatenate([layer.key.weight, layer.value.weight], axis=1) * loud
    key, value = places.keys_and_values(graph.product(read, weight))
    scores = graph.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1)
    share = graph.node("Softmax", graph.add(scores, places.mask), axis=-1)
    return graph.node("MatMul", share, value)


def _rest(graph: "_Graph", layer: Layer, attended: str, x: str) -> str:
    bias = layer.attended.bias + layer.value.bias @ layer.attended.weight
    x = graph.norm_of_sum(attended, x, bias, layer.attended_norm)
    read, loud = graph.softened(x, layer.up.weight)
    up = graph.node("BiasGelu", graph.product(read, layer.up.weight * loud), graph.constant(layer.up.bias), domain=MICROSOFT)
    down, bias = graph.product_of_gelu(up, layer.down)
    return graph.norm_of_sum(down, x, bias, layer.norm)


class _Graph:
    """Nodes and constants as they are made."""

    def __init__(self, heads: int, d: int) -> None:
        self.heads = heads
        self.d = d
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

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

    def norm(self, x: str, norm: Norm) -> str:
        return self.node(
            "LayerNormalization", x, self.constant(norm.weight), self.constant(norm.bias), axis=-1, epsilon=norm.epsilon
        )

    def norm_of_sum(self, x: str, y: str, bias: Array, norm: Norm) -> str:
        """Of x + y + bias; ONNX Runtime's fused SkipLayerNormalization takes three times as long (300 against 100 us)."""
        return self.norm(self.add(self.add(x, self.constant(bias)), y), norm)

    def words(self, words: Array) -> str:
        return self.node("Gather", self.constant(words, "words"), "input_ids")

    def product(self, x: str, weight: Array) -> str:
        return self.node("MatMul", x, self.constant(weight))

    def product_of_gelu(self, x: str, dense: Dense) -> tuple[str, Array]:
        """A product, and what has still to be added to it."""
        return self.product(x, dense.weight), dense.bias

    def softened(self, x: str, weight: Array) -> tuple[str, Array]:
        """A layer norm's x / loud, and loud (d, 1), which multiplies the weights that read it; `weight`: all of these."""
        return x, np.ones((len(weight), 1), np.float32)

    def dense(self, x: str, dense: Dense) -> str:
        return self.add(self.product(x, dense.weight), self.constant(dense.bias))

    def exact(self, x: str, dense: Dense) -> str:
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
    """The same, and `heard`: the largest size of each channel after each layer norm."""

    def __init__(self, heads: int, d: int) -> None:
        super().__init__(heads, d)
        self.heard: list[str] = []

    def norm(self, x: str, norm: Norm) -> str:
        found = super().norm(x, norm)
        self.heard.append(self.node("ReduceMax", self.node("Abs", found), self.integers(0), keepdims=0))
        return found


class _Int8Graph(_Graph):
    """The same, with the word embeddings and the linear layers over tokens in int8."""

    def __init__(self, heads: int, d: int, loudness: Sequence[Array]) -> None:
        super().__init__(heads, d)
        self._loudness = iter(loudness)
        self._loud: dict[str, Array] = {}
        self._last = self.integers(-1)
        self._least = self.constant(np.float32(1e-10))  # keeps a token of zeros from a division by zero
        self._one = self.constant(np.float32(1))
        self._middle = self.constant(np.uint8(128))
        self._middle_row = self.constant(np.array([128], np.uint8))
        self._zero = self.constant(np.uint8(0))
        self._quantized: dict[str, tuple[str, str]] = {}

    def norm(self, x: str, norm: Norm) -> str:
        found = super().norm(x, norm)
        self._loud[found] = next(self._loudness)
        return found

    def softened(self, x: str, weight: Array) -> tuple[str, Array]:
        """As far as makes a channel of x and its weights equally loud."""
        loud = np.sqrt(np.maximum(self._loud[x], 1e-6) / np.maximum(np.abs(weight).max(axis=1), 1e-6))
        loud /= np.exp(np.log(loud).mean())
        return self.node("Mul", x, self.constant(1 / loud)), loud[:, None]

    def words(self, words: Array) -> str:
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-10) / 127
        rows = self.node("Gather", self.constant(np.round(words / scale).astype(np.int8), "words"), "input_ids")
        scales = self.node("Gather", self.constant(scale.astype(np.float32)), "input_ids")
        return self.node("Mul", self.node("Cast", rows, to=TensorProto.FLOAT), scales)

    def product(self, x: str, weight: Array) -> str:
        """The numbers of x as uint8 around 128."""
        if x not in self._quantized:  # once for the layers that read the same
            scale, scales = self._scales(self.node("Max", self._largest(self.node("Abs", x)), self._least), 127)
            middles = self.node("Expand", self._middle_row, self.node("Shape", scales))
            self._quantized[x] = (self.node("QuantizeLinear", x, scales, middles, axis=0), scale)
        quantized, scale = self._quantized[x]
        return self._times(quantized, self._middle, scale, *_rounded(weight))

    def product_of_gelu(self, x: str, dense: Dense) -> tuple[str, Array]:
        """X + GELU_LEAST as uint8 from 0 on; what the products get too much is taken off the bias."""
        raised = self.add(x, self.constant(np.float32(GELU_LEAST)))
        scale, scales = self._scales(self._largest(raised), 255)
        weight, weight_scale = _rounded(dense.weight)
        product = self._times(self.node("QuantizeLinear", raised, scales, axis=0), self._zero, scale, weight, weight_scale)
        return product, dense.bias - np.float32(GELU_LEAST) * weight.sum(axis=0, dtype=np.float32) * weight_scale

    def _largest(self, x: str) -> str:
        """(n, i) -> (n, 1)."""
        return self.node("ReduceMax", x, self._last, keepdims=1)

    def _scales(self, largest: str, steps: int) -> tuple[str, str]:
        """(n, 1) -> largest / steps, also as (n,)."""
        scale = self.node("Mul", largest, self.constant(np.float32(1 / steps)))
        return scale, self.node("Squeeze", scale, self._last)

    def _times(self, quantized: str, zero: str, scale: str, weight: NDArray[np.int8], weight_scale: Array) -> str:
        inputs = (quantized, self.constant(weight), self._one, self.constant(weight_scale), zero)
        return self.node("Mul", self.node("MatMulIntegerToFloat", *inputs, domain=MICROSOFT), scale)


def _rounded(weight: Array) -> tuple[NDArray[np.int8], Array]:
    """(i, o) -> as int8, and the scale of each output (o,)."""
    scale = np.maximum(np.abs(weight).max(axis=0), np.float32(1e-10)) / np.float32(127)
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
        self.mask = node("Unsqueeze", mask, graph.integers(1, 2))  # (b, 1, 1, t)
        # A place without a token shows its own text's first one: nothing of another text is near an answer, not even times 0.
        token = node("Unsqueeze", node("Where", no_token, beginning, "view"), one)  # (b, 1, t)
        head = np.arange(heads, dtype=np.int64)
        self._to_view = node("Add", node("Mul", token, count), graph.constant(head[None, :, None]))  # (b, h, t) of (n h)
        keys = node("Add", node("Mul", token, graph.constant(np.int64(2 * heads))), graph.constant(head[None, :, None]))
        self._to_keys, self._to_values = keys, node("Add", keys, count)  # (b, h, t) of (n 2 h)
        text_and_head = node("Add", node("Unsqueeze", node("Mul", text, count), one), graph.constant(head[None]))
        self._to_tokens = node(
            "Add", node("Mul", text_and_head, width), node("Unsqueeze", self.position, one)
        )  # (n, h) of (b h t)
        self._pieces, self._whole = graph.integers(-1, graph.d // heads), graph.integers(-1, graph.d)
        self._one_place = graph.integers(-1, heads, 1, graph.d // heads)

    def heads(self, x: str) -> str:
        """(n, d) -> (b, h, t, d/h)."""
        return self._graph.node("Gather", self._graph.node("Reshape", x, self._pieces), self._to_view)

    def keys_and_values(self, x: str) -> tuple[str, str]:
        """(n, 2 d), the keys first -> twice (b, h, t, d/h)."""
        pieces = self._graph.node("Reshape", x, self._pieces)
        return self._graph.node("Gather", pieces, self._to_keys), self._graph.node("Gather", pieces, self._to_values)

    def back(self, x: str) -> str:
        """(b, h, t, d/h) -> (n, d)."""
        return self.join(self._graph.node("Gather", self._graph.node("Reshape", x, self._pieces), self._to_tokens))

    def one_place(self, x: str) -> str:
        """(b, d) -> (b, h, 1, d/h)."""
        return self._graph.node("Reshape", x, self._one_place)

    def join(self, x: str) -> str:
        """(n, h, d/h) or (b, h, 1, d/h) -> (n, d) or (b, d)."""
        return self._graph.node("Reshape", x, self._whole)
