from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from pigeonhole.training.bert_layer import fill_up, forward_layer, is_plain
from pigeonhole.training.dropout import keep, seeded

WINDOWS, LENGTH, SIZE, HEADS = 3, 5, 16, 4


def fresh_layer(dropout: float, activation: str = "gelu") -> BertLayer:
    config = BertConfig(hidden_size=SIZE, num_attention_heads=HEADS, intermediate_size=32, hidden_act=activation)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    torch.manual_seed(0)
    return BertLayer(config).train()


def by_autograd(layer: BertLayer, asking: Tensor, x: Tensor) -> Tensor:
    """Windows of one length, with dropout from the same numbers in the same order."""
    p, attention = layer.output.dropout.p, layer.attention

    def split(value: Tensor) -> Tensor:
        return value.view(WINDOWS, -1, HEADS, SIZE // HEADS).transpose(1, 2)

    query, key, value = split(attention.self.query(asking)), split(attention.self.key(x)), split(attention.self.value(x))
    shares = (query @ key.mT / (SIZE // HEADS) ** 0.5).softmax(-1)
    context = (shares * keep(shares.shape, p)) @ value
    attended = attention.output.dense(context.transpose(1, 2).reshape(asking.shape))
    middle = attention.output.LayerNorm(asking + attended * keep(attended.shape, p))
    down = layer.output.dense(F.gelu(layer.intermediate.dense(middle)))
    return cast(Tensor, layer.output.LayerNorm(middle + down * keep(down.shape, p)))


@pytest.mark.parametrize("first_alone", [False, True])
def test_answer_and_gradients_are_autograds_with_the_same_dropout(first_alone: bool) -> None:
    layer, weigh = fresh_layer(0.3), torch.randn(WINDOWS if first_alone else WINDOWS * LENGTH, SIZE)
    found = []
    for written_out in (True, False):
        x = torch.randn(WINDOWS * LENGTH, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
        asking = x[::LENGTH] if first_alone else x
        with seeded(4, own=True):
            answer = forward_layer(layer, asking, x, [(WINDOWS, LENGTH)]) if written_out else by_autograd(layer, asking, x)
        found.append([answer, *torch.autograd.grad((answer * weigh).sum(), [x, *layer.parameters()])])
    for own, expected in zip(*found, strict=True):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_windows_of_several_lengths_attend_each_within_itself() -> None:
    layer, x = fresh_layer(0.0), torch.randn(9, SIZE)
    together = forward_layer(layer, x, x, [(2, 2), (1, 5)])
    alone = [forward_layer(layer, part, part, [(1, len(part))]) for part in torch.split(x, [2, 2, 5])]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("first_alone", [False, True])
def test_in_bf16_answer_and_gradients_are_those_of_fp32_to_its_rounding(first_alone: bool) -> None:
    layer, found = fresh_layer(0.0), []
    weigh = torch.randn(WINDOWS if first_alone else WINDOWS * LENGTH, SIZE, generator=torch.Generator().manual_seed(2))
    for narrow in (True, False):
        x = torch.randn(WINDOWS * LENGTH, SIZE, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            rows = fill_up(x)
            answer = forward_layer(layer, x[::LENGTH] if first_alone else rows, rows, [(WINDOWS, LENGTH)])[: len(weigh)]
        assert len(rows) == (32 if narrow else WINDOWS * LENGTH)
        found.append([answer, *torch.autograd.grad((answer * weigh).sum(), [x, *layer.parameters()])])
    assert not torch.equal(found[0][0], found[1][0])
    for rounded, exact in zip(*found, strict=True):
        assert rounded.dtype == torch.float32
        assert (rounded - exact).norm() < 0.02 * exact.norm() + 0.01  # the gradient of the bias of keys is 0


def test_rows_that_fill_up_change_nothing_but_lengths_and_come_in_few_lengths() -> None:
    layer, lengths = fresh_layer(0.0), set()
    with torch.autocast("cpu", torch.bfloat16):
        for n in range(1, 2048):
            lengths.add(len(fill_up(torch.empty(n, 1))))
        x = torch.randn(40, SIZE)
        rows = fill_up(x)
        filled = forward_layer(layer, rows, rows, [(4, 10)])
        torch.testing.assert_close(filled[:40], forward_layer(layer, x, x, [(4, 10)]), atol=0.05, rtol=0)
    assert len(lengths) < 64
    assert len(fill_up(x)) == 40


def test_a_layer_with_another_activation_or_other_modules_is_not_plain() -> None:
    assert is_plain(fresh_layer(0.1))
    assert not is_plain(fresh_layer(0.1, activation="relu"))
    adapted: Any = fresh_layer(0.1)
    adapted.attention.self.query = torch.nn.Sequential(adapted.attention.self.query)
    assert not is_plain(adapted)
