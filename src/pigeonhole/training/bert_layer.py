"""A BERT layer as it is trained on a CPU: forward and backward written out, over windows without padding or masks.

Windows that follow each other and are equally long attend together, so no place is empty. The same numbers as BertLayer, to
rounding; fewer passes over memory than autograd needs: what dropout keeps, the residual and the product before it are added in
one, gradients are summed by the products themselves. 78 -> 91 texts a CPU-second (MiniLM, banking77, batches of 64).

Inside torch.autocast the factors and results of the linear layers are bf16; attention, norms and residuals stay fp32. oneDNN
then writes a program for each new shape, which takes longer than the product: `fill_up` makes shapes come back.
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


def fill_up(x: Tensor) -> Tensor:
    """(n, d) -> with empty rows behind, one of 16 lengths an octave, where products are in bf16; (n, d) where they are not."""
    n = len(x)
    step = max(32, (1 << n.bit_length()) // 32) if _narrow() != torch.float32 else 1
    return nn.functional.pad(x, (0, 0, 0, -n % step))


def forward_layer(layer: BertLayer, asking: Tensor, x: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """asking: x itself, or the rows of x that ask, one of each window, (b, d); x: (n, d) -> as asking.

    runs: how many windows follow each other with how many tokens each. Rows behind all of them attend to nothing.
    """
    attention = layer.attention.self
    constants = _Constants(
        runs,
        attention.num_attention_heads,
        attention.dropout.p if layer.training else 0.0,
        layer.output.dropout.p if layer.training else 0.0,
        layer.output.LayerNorm.eps,
        _narrow(),
    )
    linear = (attention.query, attention.key, attention.value, layer.attention.output.dense, layer.attention.output.LayerNorm)
    modules = (*linear, layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
    weights = [weight for module in modules for weight in (module.weight, module.bias)]
    with torch.autocast("cpu", enabled=False):  # it would make attention narrow, too
        return cast(Tensor, _Layer.apply(asking, x, constants, *weights))


def _narrow() -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32


@dataclass(frozen=True)
class _Constants:
    runs: Sequence[tuple[int, int]]
    heads: int
    attention_dropout: float
    dropout: float
    epsilon: float
    narrow: torch.dtype  # of what linear layers multiply and give


class _Layer(Function):
    @staticmethod
    def forward(ctx: Any, asking: Tensor, x: Tensor, constants: _Constants, *weights: Tensor) -> Tensor:
        w_query, b_query, w_key, b_key, w_value, b_value, w_attended, b_attended, gain, shift, *rest = weights
        w_up, b_up, w_down, b_down, last_gain, last_shift = rest
        size, p, dtype = x.shape[1:], constants.dropout, constants.narrow
        matrices = [weight.to(dtype) for weight in (w_query, w_key, w_value, w_attended, w_up, w_down)]
        m_query, m_key, m_value, m_attended, m_up, m_down = matrices
        read = x.to(dtype)
        read_asking = read if asking is x else asking.to(dtype)
        query, key, value = _linear(read_asking, m_query, b_query), _linear(read, m_key, b_key), _linear(read, m_value, b_value)
        context, attention = _attend(query, key, value, constants)

        attended = _linear(context, m_attended, b_attended)
        kept = keep(attended.shape, p) if p else None
        first_sum = _add(asking, attended, kept)
        middle, *first_norm = torch.native_layer_norm(first_sum, size, gain, shift, constants.epsilon)

        read_middle = middle.to(dtype)
        up = _linear(read_middle, m_up, b_up)  # (n, 4 d)
        active = nn.functional.gelu(up)
        down = _linear(active, m_down, b_down)
        last_kept = keep(down.shape, p) if p else None
        last_sum = _add(middle, down, last_kept)
        out, *last_norm = torch.native_layer_norm(last_sum, size, last_gain, last_shift, constants.epsilon)
        ctx.save_for_backward(read_asking, read, *matrices, gain, shift, last_gain, last_shift)
        ctx.constants, ctx.attention, ctx.everywhere = constants, attention, asking is x
        ctx.between = context, kept, first_sum, first_norm, read_middle, up, active, last_kept, last_sum, last_norm
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        asking, x, m_query, m_key, m_value, m_attended, m_up, m_down, gain, shift, last_gain, last_shift = ctx.saved_tensors
        context, kept, first_sum, first_norm, middle, up, active, last_kept, last_sum, last_norm = ctx.between

        d_sum, *d_last_norm = _norm_backward(gradient, last_sum, last_norm, last_gain, last_shift)
        d_down = _drop(d_sum, last_kept, x.dtype)
        d_w_down, d_b_down = d_down.t() @ active, d_down.sum(0)
        d_up = d_down @ m_down
        aten.gelu_backward.grad_input(d_up, up, grad_input=d_up)
        d_w_up, d_b_up = d_up.t() @ middle, d_up.sum(0)
        d_middle = _accumulate(d_sum, d_up, m_up)

        d_first_sum, *d_norm = _norm_backward(d_middle, first_sum, first_norm, gain, shift)
        d_attended = _drop(d_first_sum, kept, x.dtype)
        d_w_attended, d_b_attended = d_attended.t() @ context, d_attended.sum(0)
        d_query, d_key, d_value = _attend_backward(d_attended @ m_attended, ctx.attention, ctx.constants, len(x))
        d_projections = [d_query.t() @ asking, d_query.sum(0), d_key.t() @ x, d_key.sum(0), d_value.t() @ x, d_value.sum(0)]

        d_asking = d_x = None
        if any(ctx.needs_input_grad[:2]):
            d_asking = _accumulate(d_first_sum, d_query, m_query)
            d_x = _accumulate(d_asking, d_key, m_key) if ctx.everywhere else (d_key @ m_key).float()
            d_x = _accumulate(d_x, d_value, m_value)
        d_linear = (*d_projections, d_w_attended, d_b_attended, d_w_up, d_b_up, d_w_down, d_b_down)
        *d_attention, d_w_up, d_b_up, d_w_down, d_b_down = (value.float() for value in d_linear)
        d_weights = (*d_attention, *d_norm, d_w_up, d_b_up, d_w_down, d_b_down, *d_last_norm)
        return None if ctx.everywhere else d_asking, d_x, None, *d_weights


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addmm(bias.to(x.dtype), x, weight.t())


def _add(residual: Tensor, value: Tensor, kept: Tensor | None) -> Tensor:
    return residual + value.float() if kept is None else torch.addcmul(residual, value.float(), kept)


def _drop(gradient: Tensor, kept: Tensor | None, dtype: torch.dtype) -> Tensor:
    return (gradient if kept is None else gradient * kept).to(dtype)


def _accumulate(total: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """-> total + left @ right, in place of total."""
    if left.dtype == total.dtype:
        return torch.addmm(total, left, right, out=total)
    return total.add_((left @ right).float())


def _norm_backward(gradient: Tensor, x: Tensor, norm: Sequence[Tensor], gain: Tensor, shift: Tensor) -> tuple[Tensor, ...]:
    """-> for x, gain and shift."""
    found = aten.native_layer_norm_backward(gradient, x, x.shape[1:], *norm, gain, shift, [True, True, True])
    return cast(tuple[Tensor, ...], found)


Attention = list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor]]  # of each run, what its backward pass needs


def _attend(query: Tensor, key: Tensor, value: Tensor, constants: _Constants) -> tuple[Tensor, Attention]:
    """query: (n, d) or (b, d); key, value: (n, d) -> as query."""
    heads, p, between = constants.heads, constants.attention_dropout, []
    context, scale = _empty(len(query), query, constants.runs), (query.shape[1] // heads) ** -0.5
    for asking, all_of_it, windows in _slices(constants.runs, len(query) == len(key)):
        q, k, v = (_split(*part, heads, windows) for part in ((query, asking), (key, all_of_it), (value, all_of_it)))
        q = q * scale
        shares = (q @ k.mT).softmax(-1)  # (b h, q, t)
        kept = keep(shares.shape, p) if p else None
        used = shares if kept is None else shares * kept
        _join(used @ v, windows, context[asking])
        between.append((q, k, v, shares, kept, used))
    return context, between


def _attend_backward(gradient: Tensor, attention: Attention, constants: _Constants, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> for query, (n, d) or (b, d) as gradient, and key and value, (n, d)."""
    heads, runs = constants.heads, constants.runs
    scale = (gradient.shape[1] // heads) ** -0.5
    d_query, d_key, d_value = (_empty(rows, gradient, runs) for rows in (len(gradient), n, n))
    slices = _slices(runs, len(gradient) == n)
    for (asking, all_of_it, windows), (q, k, v, shares, kept, used) in zip(slices, attention, strict=True):
        d_context = _split(gradient, asking, heads, windows)
        d_used = d_context @ v.mT
        d_shares = d_used if kept is None else d_used.mul_(kept)
        d_scores = aten._softmax_backward_data(d_shares, shares, -1, torch.float32)
        _join(used.mT @ d_context, windows, d_value[all_of_it])
        _join((d_scores @ k).mul_(scale), windows, d_query[asking])
        _join(d_scores.mT @ q, windows, d_key[all_of_it])
    return d_query, d_key, d_value


def _empty(rows: int, like: Tensor, runs: Sequence[tuple[int, int]]) -> Tensor:
    """(rows, d), zeros in those that no window has."""
    empty = like.new_empty(rows, like.shape[1])
    empty[sum(windows * length for windows, length in runs) :] = 0
    return empty


def _slices(runs: Sequence[tuple[int, int]], everywhere: bool) -> list[tuple[slice, slice, int]]:
    """Of each run: the rows that ask, those of all its tokens, and its windows."""
    slices, window, token = [], 0, 0
    for windows, length in runs:
        all_of_it = slice(token, token + windows * length)
        slices.append((all_of_it if everywhere else slice(window, window + windows), all_of_it, windows))
        window, token = window + windows, token + windows * length
    return slices


def _split(x: Tensor, rows: slice, heads: int, windows: int) -> Tensor:
    """(b t, d) -> (b h, t, d/h), in fp32."""
    split = x[rows].view(windows, -1, heads, x.shape[1] // heads).transpose(1, 2)
    return split.to(torch.float32, memory_format=torch.contiguous_format).flatten(0, 1)


def _join(x: Tensor, windows: int, out: Tensor) -> None:
    """x: (b h, t, d/h), into out: (b t, d)."""
    joined = out.view(windows, x.shape[1], -1, x.shape[2])
    joined.copy_(x.view(windows, -1, *x.shape[1:]).transpose(1, 2))
