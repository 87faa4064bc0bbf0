import pytest
import torch

from pigeonhole.training.precision import autocast

CPU = torch.device("cpu")


def product_in(precision: str) -> torch.dtype:
    with autocast(precision, CPU):  # type: ignore[arg-type]
        return torch.nn.functional.linear(torch.randn(4, 8), torch.randn(2, 8)).dtype


def has(monkeypatch: pytest.MonkeyPatch, **units: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units, raising=False)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"amx_bf16": True, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": False, "avx512_bf16": False, "avx512_vnni": True}, torch.float32),
    ],
)
def test_a_cpu_multiplies_in_bf16_by_itself_where_it_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, units: dict[str, bool], expected: torch.dtype
) -> None:
    has(monkeypatch, **units)
    assert product_in("auto") == expected


def test_a_torch_that_cannot_tell_what_a_cpu_has_stays_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_in("auto") == torch.float32


def test_what_is_asked_for_by_name_holds_on_any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_amx in (True, False):
        has(monkeypatch, amx_bf16=has_amx)
        assert (product_in("fp32"), product_in("bf16")) == (torch.float32, torch.bfloat16)
