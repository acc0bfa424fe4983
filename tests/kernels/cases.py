"""Random arguments of a masked linear layer, for tests of the kernels in the interpreter and on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def case(
    shape: tuple[int, int, int, int], dtypes: tuple[torch.dtype, ...], device: torch.device, shared: bool = False
) -> dict[str, Tensor]:
    """Return the arguments of a masked linear layer with x [D, M, K] and weight [N, K], by name.

    Args:
        dtypes: of x, of the weight and of the logits.
        shared: whether all draws share one x.
    """
    D, M, K, N = shape
    x_dtype, weight_dtype, logits_dtype = dtypes
    g = torch.Generator().manual_seed(1)
    tensors = {
        "grad": torch.randn(D, M, N, generator=g).to(x_dtype),
        "x": torch.randn(1 if shared else D, M, K, generator=g).expand(D, M, K).to(x_dtype),
        "weight": torch.randn(N, K, generator=g).to(weight_dtype),
        "logits": (2 * torch.randn(N, K, generator=g)).to(logits_dtype),
        "bias": torch.randn(N, generator=g).to(x_dtype),
        "seed": torch.tensor([-77]),
        "draw": torch.randint(0, 2**32, (D,), generator=g),
    }
    return {name: tensor.to(device) for name, tensor in tensors.items()}
