import platform
from types import SimpleNamespace

import pytest
import torch

from pigeonhole.errors import ConfigError
from pigeonhole.training.precision import autocast, bf16_products

CPU = torch.device("cpu")


def product() -> torch.Tensor:
    torch.manual_seed(0)
    left, right = torch.randn(64, 256), torch.randn(256, 64)
    return left @ right


def test_products_are_in_fp32_on_a_cpu_unless_bf16_is_asked_for() -> None:
    exact = product()
    with bf16_products("auto", CPU), autocast("auto", CPU):
        assert torch.equal(product(), exact)


def test_a_torch_that_is_too_old_for_bf16_on_a_cpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends, "mkldnn", SimpleNamespace())
    with pytest.raises(ConfigError, match=r"takes torch 2\.9, here is .*; precision=auto"), bf16_products("bf16", CPU):
        pass


@pytest.mark.skipif(platform.machine() != "x86_64", reason="oneDNN computes products for x86")
def test_bf16_products_differ_by_bf16s_rounding_and_no_longer_afterwards() -> None:
    if torch.__version__.startswith("2.8."):
        return  # which the test above is about
    exact = product()
    with bf16_products("bf16", CPU):
        rounded = product()
    assert 0 <= (rounded - exact).abs().max() < 0.5  # factors in 8 bits of mantissa, 256 of them summed
    assert torch.equal(product(), exact)
