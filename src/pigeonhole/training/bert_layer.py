"""A BERT layer as it is trained on a CPU: forward and backward written out, over windows without padding or masks.

Windows that follow each other and are equally long attend together, so no place is empty. The same numbers as BertLayer, to
rounding; fewer passes over memory than autograd needs: what dropout keeps, the residual and the product before it are added in
one, gradients are summed by the products themselves. 78 -> 91 texts a CPU-second (MiniLM, banking77, batches of 64).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from transformers.activations import GELUActivation
from transformers.models.bert.modeling_bert import BertLayer

from pigeonhole.training.dropout import keep

aten: Any = torch.ops.aten


def is_plain(layer: BertLayer) -> bool:
    """Whether nothing in it was replaced by what is computed otherwise (adapters, another activation)."""
    attention = layer.attention.self
    projections = (attention.query, attention.key, attention.value, layer.attention.output.dense)
    linear = (*projections, layer.intermediate.dense, layer.output.dense)
    exact = isinstance(layer.intermediate.intermediate_act_fn, GELUActivation | nn.GELU)
    return exact and all(type(module) is nn.Linear and module.weight.dtype == torch.float32 for module in linear)


def forward_layer(layer: BertLayer, asking: Tensor, x: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """asking: x itself, or the rows of x that ask, one of each window, (b, d); x: (n, d) -> as asking.

    runs: how many windows follow each other with how many tokens each.
    """
    attention = layer.attention.self
    constants = _Constants(
        runs,
        attention.num_attention_heads,
        attention.dropout.p if layer.training else 0.0,
        layer.output.dropout.p if layer.training else 0.0,
        layer.output.LayerNorm.eps,
    )
    linear = (attention.query, attention.key, attention.value, layer.attention.output.dense, layer.attention.output.LayerNorm)
    modules = (*linear, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
    weights = [weight for module in modules for weight in (module.weight, module.bias)]
    return cast(Tensor, _Layer.apply(asking, x, constants, *weights))


@dataclass(frozen=True)
class _Constants:
    runs: Sequence[tuple[int, int]]
    heads: int
    attention_dropout: float
    dropout: float
    epsilon: float


class _Layer(Function):
    @staticmethod
    def forward(ctx: Any, asking: Tensor, x: Tensor, constants: _Constants, *weights: Tensor) -> Tensor:
        w_query, b_query, w_key, b_key, w_value, b_value, w_attended, b_attended, gain, shift, *rest = weights
        w_up, b_up, w_down, b_down, last_gain, last_shift = rest
        size, p = x.shape[1:], constants.dropout
        query = torch.addmm(b_query, asking, w_query.t())
        key, value = torch.addmm(b_key, x, w_key.t()), torch.addmm(b_value, x, w_value.t())
        context, attention = _attend(query, key, value, constants)

        attended = torch.addmm(b_attended, context, w_attended.t())
        kept = keep(attended.shape, p) if p else None
        first_sum = _add(asking, attended, kept)
        middle, *first_norm = torch.native_layer_norm(first_sum, size, gain, shift, constants.epsilon)

        up = torch.addmm(b_up, middle, w_up.t())  # (n, 4 d)
        active = nn.functional.gelu(up)
        down = torch.addmm(b_down, active, w_down.t())
        last_kept = keep(down.shape, p) if p else None
        last_sum = _add(middle, down, last_kept)
        out, *last_norm = torch.native_layer_norm(last_sum, size, last_gain, last_shift, constants.epsilon)
        ctx.save_for_backward(asking, x, *weights)
        ctx.constants, ctx.attention, ctx.everywhere = constants, attention, asking is x
        ctx.between = context, kept, first_sum, first_norm, middle, up, active, last_kept, last_sum, last_norm
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        asking, x, w_query, _, w_key, _, w_value, _, w_attended, _, gain, shift, *rest = ctx.saved_tensors
        w_up, _, w_down, _, last_gain, last_shift = rest
        context, kept, first_sum, first_norm, middle, up, active, last_kept, last_sum, last_norm = ctx.between

        d_sum, *d_last_norm = _norm_backward(gradient, last_sum, last_norm, last_gain, last_shift)
        d_down = d_sum if last_kept is None else d_sum * last_kept
        d_w_down, d_b_down = d_down.t() @ active, d_down.sum(0)
        d_up = d_down @ w_down
        aten.gelu_backward.grad_input(d_up, up, grad_input=d_up)
        d_w_up, d_b_up = d_up.t() @ middle, d_up.sum(0)
        d_middle = torch.addmm(d_sum, d_up, w_up, out=d_sum)

        d_first_sum, *d_norm = _norm_backward(d_middle, first_sum, first_norm, gain, shift)
        d_attended = d_first_sum if kept is None else d_first_sum * kept
        d_w_attended, d_b_attended = d_attended.t() @ context, d_attended.sum(0)
        d_query, d_key, d_value = _attend_backward(d_attended @ w_attended, ctx.attention, ctx.constants)
        d_projections = [d_query.t() @ asking, d_query.sum(0), d_key.t() @ x, d_key.sum(0), d_value.t() @ x, d_value.sum(0)]

        d_asking = d_x = None
        if any(ctx.needs_input_grad[:2]):
            d_asking = torch.addmm(d_first_sum, d_query, w_query, out=d_first_sum)
            d_x = torch.addmm(d_asking, d_key, w_key, out=d_asking) if ctx.everywhere else d_key @ w_key
            d_x = torch.addmm(d_x, d_value, w_value, out=d_x)
        d_weights = (*d_projections, d_w_attended, d_b_attended, *d_norm, d_w_up, d_b_up, d_w_down, d_b_down, *d_last_norm)
        return None if ctx.everywhere else d_asking, d_x, None, *d_weights


def _add(residual: Tensor, value: Tensor, kept: Tensor | None) -> Tensor:
    return residual + value if kept is None else torch.addcmul(residual, value, kept)


def _norm_backward(gradient: Tensor, x: Tensor, norm: Sequence[Tensor], gain: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """-> for x, gain and shift."""
    found = aten.native_layer_norm_backward(gradient, x, x.shape[1:], *norm, gain, shift, [True, True, True])
    return cast(tuple[Tensor, ...], found)


Attention = list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]]  # of each run, what its backward pass needs


def _attend(query: Tensor, key: Tensor, value: Tensor, constants: _Constants) -> tuple[Tensor, Attention]:
    """query: (n, d) or (b, d); key, value: (n, d) -> as query."""
    heads, p, between = constants.heads, constants.attention_dropout, []
    context, scale = torch.empty_like(query), (query.shape[1] // heads) ** -0.5
    for asking, all_of_it, windows in _slices(constants.runs, len(query) == len(key)):
        q, k, v = (_split(*part, heads, windows) for part in ((query, asking), (key, all_of_it), (value, all_of_it)))
        q = q * scale
        shares = (q @ k.mT).softmax(-1)  # (b h, q, t)
        kept = keep(shares.shape, p) if p else None
        used = shares if kept is None else shares * kept
        _join(used @ v, windows, context[asking])
        between.append((q, k, v, shares, kept, used))
    return context, between


def _attend_backward(gradient: Tensor, attention: Attention, constants: _Constants) -> tuple[Tensor, Tensor, Tensor]:
    """-> for query, key and value."""
    heads, n_tokens = constants.heads, sum(windows * length for windows, length in constants.runs)
    scale = (gradient.shape[1] // heads) ** -0.5
    d_query, d_key = torch.empty_like(gradient), gradient.new_empty(n_tokens, gradient.shape[1])
    d_value = torch.empty_like(d_key)
    slices = _slices(constants.runs, len(gradient) == n_tokens)
    for (asking, all_of_it, windows), (q, k, v, shares, kept, used) in zip(slices, attention, strict=True):
        d_context = _split(gradient, asking, heads, windows)
        d_used = d_context @ v.mT
        d_shares = d_used if kept is None else d_used.mul_(kept)
        d_scores = aten._softmax_backward_data(d_shares, shares, -1, torch.float32)
        _join(used.mT @ d_context, windows, d_value[all_of_it])
        _join((d_scores @ k).mul_(scale), windows, d_query[asking])
        _join(d_scores.mT @ q, windows, d_key[all_of_it])
    return d_query, d_key, d_value


def _slices(runs: Sequence[tuple[int, int]], everywhere: bool) -> list[tuple[slice, slice, int]]:
    """Of each run: the rows that ask, those of all its tokens, and its windows."""
    slices, window, token = [], 0, 0
    for windows, length in runs:
        all_of_it = slice(token, token + windows * length)
        slices.append((all_of_it if everywhere else slice(window, window + windows), all_of_it, windows))
        window, token = window + windows, token + windows * length
    return slices


def _split(x: Tensor, rows: slice, heads: int, windows: int) -> Tensor:
    """(b t, d) -> (b h, t, d/h)."""
    return x[rows].view(windows, -1, heads, x.shape[1] // heads).transpose(1, 2).flatten(0, 1)


def _join(x: Tensor, windows: int, out: Tensor) -> None:
    """x: (b h, t, d/h), into out: (b t, d)."""
    joined = out.view(windows, x.shape[1], -1, x.shape[2])
    joined.copy_(x.view(windows, -1, *x.shape[1:]).transpose(1, 2))
