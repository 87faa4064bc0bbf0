"""In how many bits training multiplies: bf16 by itself where a GPU or a CPU has units for it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]
UNITS = ("amx_bf16", "avx512_bf16")  # Intel's since Sapphire Rapids; AMD's since Zen 4


def autocast(precision: Precision, device: torch.device) -> torch.autocast | nullcontext[None]:
    """For the forward pass; weights, norms and sums stay in fp32. "auto" on a CPU is bf16 with UNITS, else fp32."""
    if precision == "fp32":
        return nullcontext()
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_bf16_supported() else nullcontext()
    narrow = device.type == "cpu" and (precision == "bf16" or _has_units())
    return torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext()


def _has_units() -> bool:
    """False where torch is too old to tell."""
    get_capabilities: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    found = get_capabilities()
    return any(found.get(unit) for unit in UNITS)
