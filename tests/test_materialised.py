"""The products that torch makes of masked weights in transient memory."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from stochprune import materialised

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize("given, wanted", list(itertools.product(DTYPES, DTYPES)), ids=str)
def test_outer_of_any_dtypes(
    given: torch.dtype, wanted: torch.dtype, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp32 activations above bf16 weights too, by the rule of CUDA's ``mm``: halves give halves or float32."""
    mm = torch.mm

    def as_on_a_gpu(a: Tensor, b: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        if out_dtype not in (None, a.dtype) and (a.dtype.itemsize != 2 or out_dtype != torch.float32):
            raise RuntimeError(f"out_dtype {out_dtype} of {a.dtype}")
        return mm(a.double(), b.double()).to(out_dtype or a.dtype)

    g = torch.Generator().manual_seed(1)
    grad, x = torch.randn(2, 9, 4, generator=g).to(given), torch.randn(2, 9, 5, generator=g).to(given)
    exact = grad[1].double().T @ x[1].double()
    if on_gpu:
        monkeypatch.setattr(torch, "mm", as_on_a_gpu)
        monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    found = materialised.outer(grad, x, 1, wanted)
    assert found.dtype == wanted
    precision = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    assert (found.double() - exact).abs().max() <= max(precision[given], precision[wanted]) * exact.abs().max()
