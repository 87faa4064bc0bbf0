"""The padding-free graph: the tokens of all texts in one row, linear layers over real tokens only, attention on a gathered view.

Inputs (n tokens, b texts, t places a text; classifier.py makes them): `input_ids` (n,), the tokens, one text after the other;
`view` (b, t), which of them stands at which place of its text, -1 where there is none; `place` (n,), where each of them stands
in the flattened view. A row of a linear layer is computed by itself and attention text by text, so an answer is the same, bit for
bit, in any company, as long as the view has the same width.

In int8 a linear layer has a scale for each output and, computed as it runs, for each token: sums of integers, exact in any order.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from pigeonhole.bundle import WEIGHTS, Precision
from pigeonhole.classifier import OUTPUTS
from pigeonhole.training.weights import Array, Dense, Layer, Norm, Weights

MICROSOFT = "com.microsoft"  # ONNX Runtime's own operators
OPSET = 21  # the first whose QuantizeLinear takes a scale for each row at int8
# Added to the attention paid to a place without a token: exp(-60) is lost in any sum with 1, and no denormal number, which a CPU
# computes with a hundred times more slowly (22 % of int8's time with -1e9).
NEVER = -60.0
GELU_LEAST = 0.17  # gelu(x) >= -0.17


def write_packed(weights: Weights, path: Path, precision: Precision) -> None:
    """Into a new file, and its weights into another one beside it."""
    graph = (_Graph if precision == "fp32" else _Int8Graph)(weights.attention_heads, weights.words.shape[1])
    embedding = _embedding_of(graph, weights)  # (b, d)
    graph.node("Identity", embedding, output="text_embedding")
    graph.node(
        "Gemm",
        embedding,
        graph.constant(weights.head.weight, "head.weight"),
        graph.constant(weights.head.bias, "head.bias"),
        output="logits",
    )
    graph.save(path, outputs={"logits": len(weights.head.bias), "text_embedding": weights.words.shape[1]})


def _embedding_of(graph: "_Graph", weights: Weights) -> str:
    places = _Places(graph)
    x = graph.add(graph.words(weights.words), graph.node("Gather", graph.constant(weights.positions), places.position))
    x = graph.norm(x, weights.norm)  # (n, d)
    for layer in weights.layers[:-1]:
        attended = places.back(_attend(graph, places, layer, places.heads(_query(graph, layer, x)), x))
        x = _rest(graph, layer, graph.product(attended, layer.attended.weight), x)
    last = weights.layers[-1]
    first = graph.node("Gather", x, places.first)  # (b, d): of the last layer, only what the pooler reads
    query = places.one_place(_query(graph, last, first))
    attended = places.join(_attend(graph, places, last, query, x))
    # A row a text costs next to nothing in fp32, and an averaging layer has all that it heard in here: half of int8's difference.
    x = _rest(graph, last, graph.node("MatMul", attended, graph.constant(last.attended.weight)), first)
    return graph.node(weights.pooler_activation, graph.exact(x, weights.pooler))


def _query(graph: "_Graph", layer: Layer, x: str) -> str:
    """With the scale of the attention in its weights."""
    scale = np.float32(1 / np.sqrt(graph.d / graph.heads))
    return graph.dense(x, Dense(layer.query.weight * scale, layer.query.bias * scale))


def _attend(graph: "_Graph", places: "_Places", layer: Layer, query: str, x: str) -> str:
    """-> (b, h, t or 1, d/h).

    The values' bias goes through the average as it is: `_rest` adds it. The keys' bias changes nothing: it adds the same to all
    that a query is compared with.
    """
    key, value = places.keys_and_values(graph.product(x, np.concatenate([layer.key.weight, layer.value.weight], axis=1)))
    scores = graph.node("FusedMatMul", query, key, domain=MICROSOFT, transB=1)
    share = graph.node("Softmax", graph.add(scores, places.mask), axis=-1)
    return graph.node("MatMul", share, value)


def _rest(graph: "_Graph", layer: Layer, attended: str, x: str) -> str:
    bias = layer.attended.bias + layer.value.bias @ layer.attended.weight
    x = graph.norm_of_sum(attended, x, bias, layer.attended_norm)
    up = graph.node("BiasGelu", graph.product(x, layer.up.weight), graph.constant(layer.up.bias), domain=MICROSOFT)
    return graph.norm_of_sum(graph.product(up, layer.down.weight, least=GELU_LEAST), x, layer.down.bias, layer.norm)


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

    def product(self, x: str, weight: Array, least: float | None = None) -> str:
        """`least`: no x is smaller than minus this, where that is known."""
        return self.node("MatMul", x, self.constant(weight))

    def dense(self, x: str, dense: Dense) -> str:
        return self.add(self.product(x, dense.weight), self.constant(dense.bias))

    def exact(self, x: str, dense: Dense) -> str:
        return self.node("Gemm", x, self.constant(dense.weight), self.constant(dense.bias))

    def save(self, path: Path, outputs: dict[str, int]) -> None:
        assert set(outputs) == set(OUTPUTS)
        shapes = {"input_ids": ["n"], "place": ["n"], "view": ["b", "t"]}
        graph = helper.make_graph(
            self._nodes,
            "packed",
            [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in shapes.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", width]) for name, width in outputs.items()],
            self._constants,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        weights = path.with_name(path.name + WEIGHTS)
        # A file of weights is mapped, not copied: an fp32 MiniLM opens in 0.07 s at a peak of 111 MB, not in 0.17 at 196.
        onnx.save_model(model, path, save_as_external_data=True, location=weights.name)
        weights.chmod(0o644)  # it was made as a temporary file; a service is another user


class _Int8Graph(_Graph):
    """The same, with the word embeddings and the linear layers over tokens in int8."""

    def __init__(self, heads: int, d: int) -> None:
        super().__init__(heads, d)
        self._last = self.integers(-1)
        self._least = self.constant(np.float32(1e-10))  # keeps a token of zeros from a division by zero
        self._step = self.constant(np.float32(1 / 127))
        self._one = self.constant(np.float32(1))
        self._middle = self.constant(np.uint8(128))
        self._middle_row = self.constant(np.array([128], np.uint8))
        self._quantized: dict[str, tuple[str, str]] = {}

    def words(self, words: Array) -> str:
        scale = np.maximum(np.abs(words).max(axis=1, keepdims=True), 1e-10) / 127
        rows = self.node("Gather", self.constant(np.round(words / scale).astype(np.int8), "words"), "input_ids")
        scales = self.node("Gather", self.constant(scale.astype(np.float32)), "input_ids")
        return self.node("Mul", self.node("Cast", rows, to=TensorProto.FLOAT), scales)

    def product(self, x: str, weight: Array, least: float | None = None) -> str:
        scale = np.maximum(np.abs(weight).max(axis=0), 1e-10) / 127  # (o,)
        rounded = self.constant(np.round(weight / scale).astype(np.int8))
        quantized, token_scale = self._quantize(x, least)
        scales = self.constant(scale.astype(np.float32))
        summed = self.node("MatMulIntegerToFloat", quantized, rounded, self._one, scales, self._middle, domain=MICROSOFT)
        return self.node("Mul", summed, token_scale)

    def _quantize(self, x: str, least: float | None) -> tuple[str, str]:
        """(n, i) -> the same as uint8 around 128, and its scales (n, 1). Once for the layers that read the same."""
        if x not in self._quantized:
            size, floor = (self.node("Abs", x), self._least) if least is None else (x, self.constant(np.float32(least)))
            largest = self.node("ReduceMax", size, self._last, keepdims=1)
            scale = self.node("Mul", self.node("Max", largest, floor), self._step)
            scales = self.node("Squeeze", scale, self._last)  # (n,)
            middles = self.node("Expand", self._middle_row, self.node("Shape", scales))
            self._quantized[x] = (self.node("QuantizeLinear", x, scales, middles, axis=0), scale)
        return self._quantized[x]


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
