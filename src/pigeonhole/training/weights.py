"""The weights of a BERT-family classifier under names of our own, whatever its family calls them.

Knows BERT, RoBERTa (CamemBERT, XLM-RoBERTa) and DistilBERT as transformers writes them; for another body there are none.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pigeonhole.training.model import TextClassifier

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Dense:
    """x (…, i) -> x @ weight + bias (…, o)."""

    weight: Array  # (i, o)
    bias: Array  # (o,)


@dataclass(frozen=True)
class Norm:
    weight: Array  # (d,)
    bias: Array  # (d,)
    epsilon: float


@dataclass(frozen=True)
class Layer:
    query: Dense
    key: Dense
    value: Dense
    attended: Dense
    attended_norm: Norm
    up: Dense
    down: Dense
    norm: Norm


@dataclass(frozen=True)
class Weights:
    """words (v, d), positions (p, d): with the only token type in them; the first token of the last layer goes to the pooler."""

    words: Array
    positions: Array
    norm: Norm
    layers: tuple[Layer, ...]
    attention_heads: int
    pooler: Dense
    pooler_activation: Literal["Tanh", "Relu"]
    head: Dense


@dataclass(frozen=True)
class _Family:
    body: str
    layers: str
    names: tuple[str, str, str, str, str, str, str, str]  # in the order of Layer's fields
    pooler: str
    pooler_activation: Literal["Tanh", "Relu"]
    epsilon: str | float = "layer_norm_eps"


_BERT_LAYER = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
_DISTILBERT_LAYER = (
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "sa_layer_norm",
    "ffn.lin1",
    "ffn.lin2",
    "output_layer_norm",
)
_ROBERTA = _Family("roberta", "encoder.layer", _BERT_LAYER, "classifier.dense", "Tanh")
_FAMILIES = {
    "bert": _Family("bert", "encoder.layer", _BERT_LAYER, "bert.pooler.dense", "Tanh"),
    "roberta": _ROBERTA,
    "camembert": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "distilbert": _Family("distilbert", "transformer.layer", _DISTILBERT_LAYER, "pre_classifier", "Relu", epsilon=1e-12),
}


def read_weights(model: TextClassifier) -> Weights | None:
    """None for a body that is built otherwise."""
    config = model.body.config
    family = _FAMILIES.get(config.model_type)
    activation = getattr(config, "hidden_act", None) or getattr(config, "activation", None)
    absolute = getattr(config, "position_embedding_type", None) in (None, "absolute")
    if family is None or activation != "gelu" or not absolute or getattr(config, "is_decoder", False):
        return None
    state = {name: tensor.detach().cpu().float().numpy() for name, tensor in model.body.state_dict().items()}
    epsilon = family.epsilon if isinstance(family.epsilon, float) else float(getattr(config, family.epsilon))
    embeddings = f"{family.body}.embeddings"
    return Weights(
        words=state[f"{embeddings}.word_embeddings.weight"],
        positions=_positions(state, embeddings, config),
        norm=_norm(state, f"{embeddings}.LayerNorm", epsilon),
        layers=tuple(_layers(state, family, epsilon)),
        attention_heads=config.num_attention_heads,
        pooler=_dense(state, family.pooler),
        pooler_activation=family.pooler_activation,
        head=Dense(model.head.weight.detach().cpu().numpy().T, model.head.bias.detach().cpu().numpy()),
    )


def _positions(state: Mapping[str, Array], embeddings: str, config: Any) -> Array:
    positions = state[f"{embeddings}.position_embeddings.weight"]
    if config.model_type not in ("bert", "distilbert"):
        positions = positions[config.pad_token_id + 1 :]  # RoBERTa counts from behind its padding's id
    types = state.get(f"{embeddings}.token_type_embeddings.weight")
    return positions if types is None else positions + types[0]


def _layers(state: Mapping[str, Array], family: _Family, epsilon: float) -> Iterator[Layer]:
    number = 0
    while f"{family.body}.{family.layers}.{number}.{family.names[0]}.weight" in state:
        names = [f"{family.body}.{family.layers}.{number}.{name}" for name in family.names]
        query, key, value, attended, attended_norm, up, down, norm = names
        yield Layer(
            query=_dense(state, query),
            key=_dense(state, key),
            value=_dense(state, value),
            attended=_dense(state, attended),
            attended_norm=_norm(state, attended_norm, epsilon),
            up=_dense(state, up),
            down=_dense(state, down),
            norm=_norm(state, norm, epsilon),
        )
        number += 1


def _dense(state: Mapping[str, Array], name: str) -> Dense:
    return Dense(state[f"{name}.weight"].T, state[f"{name}.bias"])


def _norm(state: Mapping[str, Array], name: str, epsilon: float) -> Norm:
    return Norm(state[f"{name}.weight"], state[f"{name}.bias"], epsilon)
