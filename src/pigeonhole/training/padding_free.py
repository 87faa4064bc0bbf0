"""The forward pass over windows without padding: linear layers see real tokens only, attention a view of them.

A BERT body is walked layer by layer: on a CPU by bert_layer.py, elsewhere and with adapters module by module; another family gets
its rows padded and is called as it is. Same answer as the body's own forward pass, to rounding. In training it saves what padding
costs and, beside that, the work on attention masks: 56 -> 64 texts a CPU-second (MiniLM, banking77, batches of 32).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from transformers import BertForSequenceClassification, BertModel
from transformers.models.bert.modeling_bert import BertLayer

from pigeonhole.training.batches import Packed
from pigeonhole.training.bert_layer import fill_up, forward_layer, is_plain
from pigeonhole.training.dropout import attend
from pigeonhole.training.model import TextClassifier


class PaddingFree(nn.Module):
    """A TextClassifier that takes packed windows; shares its weights."""

    def __init__(self, classifier: TextClassifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """-> logits (b, c), embedding (b, d)."""
        body = self.classifier.body
        if isinstance(body, BertForSequenceClassification):
            embedding = _embed(body, packed)
            with torch.autocast(embedding.device.type, enabled=False):  # rounded logits would be a rounded loss
                embedding = embedding.float()
                return self.classifier.head(embedding), embedding
        return cast(tuple[Tensor, Tensor], self.classifier(*pad(packed, body.config.pad_token_id or 0)))

    def hidden_states(self, packed: Packed, layers: int) -> Tensor:
        """What the lowest `layers` of a BERT body give for the tokens, (n, d)."""
        bert = cast(BertForSequenceClassification, self.classifier.body).bert
        stack = cast(list[BertLayer], bert.encoder.layer[:layers])
        return _walk(stack, _begin(bert, packed), packed)[: len(packed.input_ids)]


def pad(packed: Packed, pad_token_id: int = 0) -> tuple[Tensor, Tensor]:
    """-> input_ids, attention_mask, each (b, t) int64; a decoder finds a text's last token by the padding's id."""
    mask = packed.view >= 0
    return packed.input_ids[packed.view.clamp(min=0)].where(mask, pad_token_id), mask.long()


def _embed(body: BertForSequenceClassification, packed: Packed) -> Tensor:
    """-> (b, d)."""
    bert, hidden = body.bert, packed.hidden
    layers, x = (0, _begin(bert, packed)) if hidden is None else (hidden.layers, hidden.vectors)
    x = _walk(cast(list[BertLayer], bert.encoder.layer[layers:]), x, packed, first_tokens=True)
    return cast(Tensor, body.dropout(cast(nn.Module, bert.pooler)(x[:, None])))


def _begin(bert: BertModel, packed: Packed) -> Tensor:
    """-> (n, d)."""
    position_ids = (packed.place % packed.view.shape[1])[None]
    token_types = torch.zeros_like(position_ids)
    found = bert.embeddings(input_ids=packed.input_ids[None], position_ids=position_ids, token_type_ids=token_types)
    return cast(Tensor, found[0])


def _walk(layers: Sequence[BertLayer], x: Tensor, packed: Packed, *, first_tokens: bool = False) -> Tensor:
    """(n, d) -> (n, d), with empty rows behind where `fill_up` says so; `first_tokens`: what the pooler reads alone, (b, d)."""
    whole, last = (layers[:-1], layers[-1]) if first_tokens else (layers, None)
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and all(map(is_plain, layers)):
        x = fill_up(x)
        for layer in whole:
            x = forward_layer(layer, x, x, packed.runs)
        return x if last is None else forward_layer(last, x.index_select(0, packed.view[:, 0]), x, packed.runs)
    full = len(packed.place) == packed.view.numel()
    mask = None if full else (packed.view >= 0)[:, None, None]  # (b, 1, 1, t)
    for layer in whole:
        x = _layer(layer, x, x, packed, mask)
    return x if last is None else _layer(last, x.index_select(0, packed.view[:, 0]), x, packed, mask)


def _layer(layer: BertLayer, asking: Tensor, x: Tensor, packed: Packed, mask: Tensor | None) -> Tensor:
    """asking: (n, d), or (b, d) for first tokens alone; x: (n, d) -> as asking."""
    attention = layer.attention.self
    heads, texts, width = attention.num_attention_heads, *packed.view.shape

    def split(value: Tensor, places: int) -> Tensor:
        return value.view(texts, places, heads, -1).transpose(1, 2)  # (b, h, t or 1, d/h)

    def spread(value: Tensor) -> Tensor:
        return value if mask is None else cast(Tensor, _ToView.apply(value, packed.view, packed.place))

    everywhere = asking is x
    query = split(spread(attention.query(x)), width) if everywhere else split(attention.query(asking), 1)
    key, value = split(spread(attention.key(x)), width), split(spread(attention.value(x)), width)
    dropout = attention.dropout.p if attention.training else 0.0
    if dropout and x.device.type == "cpu":
        context = attend(query, key, value, mask, dropout)
    else:
        context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    context = context.transpose(1, 2).reshape(-1, x.shape[1])
    if everywhere and mask is not None:
        context = cast(Tensor, _ToTokens.apply(context, packed.place))
    attended = layer.attention.output(context, asking)
    return cast(Tensor, layer.output(layer.intermediate(attended), attended))


class _ToView(Function):
    """(n, d) -> (b t, d). What stands where there is no token gets no gradient, so the way back is a plain gather."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, view: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        return x.index_select(0, view.flatten().clamp(min=0))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (place,) = ctx.saved_tensors
        return gradient.index_select(0, place), None, None


class _ToTokens(Function):
    """(b t, d) -> (n, d)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, place: Tensor) -> Tensor:
        ctx.save_for_backward(place)
        ctx.places = len(x)
        return x.index_select(0, place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (place,) = ctx.saved_tensors
        spread = gradient.new_zeros(ctx.places, gradient.shape[1])
        return spread.index_copy_(0, place, gradient), None
