"""In how many bits training multiplies: bf16 by itself where a GPU or a CPU has units for it."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16"]


def autocast(precision: Precision, device: torch.device) -> torch.autocast | nullcontext[None]:
    """For the forward pass; weights, norms and sums stay in fp32. "auto" on a CPU is bf16 with AMX, else fp32."""
    if precision == "fp32":
        return nullcontext()
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16) if torch.cuda.is_bf16_supported() else nullcontext()
    narrow = device.type == "cpu" and (precision == "bf16" or _has_amx())
    return torch.autocast("cpu", torch.bfloat16) if narrow else nullcontext()


def _has_amx() -> bool:
    """False where torch is too old to tell."""
    get_capabilities: Callable[[], Mapping[str, object]] = getattr(torch.cpu, "get_capabilities", dict)
    return bool(get_capabilities().get("amx_bf16"))
