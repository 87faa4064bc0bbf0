import pytest
import torch
from torch.nn import functional as F

from pigeonhole.training.dropout import Dropout, attend, drop, replace_dropout, seeded


def test_each_number_is_dropped_with_the_probability_asked_for_and_the_mean_stays() -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_003)
    dropped = drop(x, 0.1)
    assert dropped.eq(0).float().mean().item() == pytest.approx(0.1, abs=0.001)
    assert sorted(set(dropped.tolist())) == pytest.approx([0, 1 / 0.9])
    pairs = dropped.eq(0).float()
    assert (pairs[1:] * pairs[:-1]).mean().item() == pytest.approx(0.01, abs=0.0005), "neighbours are dropped independently"


def test_the_gradient_goes_through_what_was_kept() -> None:
    x = torch.randn(50, 7, requires_grad=True)
    dropped = drop(x, 0.5)
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(gradient, torch.where(dropped == 0, 0.0, 2.0))


def test_a_thread_with_a_seed_of_its_own_draws_the_same_whatever_the_others_draw() -> None:
    x = torch.ones(1000)
    with seeded(1, own=True):
        expected = drop(x, 0.3)
    torch.manual_seed(5)
    drop(x, 0.3)
    with seeded(1, own=True):
        assert torch.equal(drop(x, 0.3), expected)
    with seeded(2, own=True):
        assert not torch.equal(drop(x, 0.3), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_torchs_own_where_nothing_is_dropped(masked: bool) -> None:
    query, key, value = torch.randn(3, 2, 4, 5, 8).unbind(0)
    mask = torch.tensor([[True, True, False, False, False], [True] * 5])[:, None, None] if masked else None
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(attend(query, key, value, mask, 0.0), expected)


def test_a_models_dropout_is_replaced_where_it_stands_and_evaluation_keeps_all() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.4), torch.nn.Sequential(torch.nn.Dropout(0.2)))
    replace_dropout(model)
    assert [module.p for module in model.modules() if type(module) is Dropout] == [0.4, 0.2]
    x = torch.randn(6, 4)
    assert torch.equal(model.eval()(x), model[0](x))
    assert not torch.equal(model.train()(x), model[0](x))
