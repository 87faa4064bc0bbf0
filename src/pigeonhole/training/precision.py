"""In how many bits training computes: bf16 by itself on a GPU that has it, on a CPU only where one asks for it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch

from pigeonhole.errors import ConfigError

Precision = Literal["auto", "fp32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast | nullcontext[None]:
    """For the forward pass on a GPU; weights and sums stay in fp32."""
    if device.type != "cuda" or precision == "fp32" or not torch.cuda.is_bf16_supported():
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16)


@contextmanager
def bf16_products(precision: Precision, device: torch.device) -> Iterator[None]:
    """On a CPU, matrix products with factors in bf16 where the recipe says so: 3 times as fast with AMX, far slower without.

    Raises ConfigError for a torch that cannot be told so.
    """
    if precision != "bf16" or device.type != "cpu":
        yield
        return
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:
        raise ConfigError(f"trainer.precision=bf16: on a CPU that takes torch 2.9, here is {torch.__version__}; precision=auto")
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
