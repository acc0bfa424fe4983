"""The Triton backend: a module with the functions of :mod:`stochprune.reference` for tensors on a GPU.

Under ``TRITON_INTERPRET=1`` the same kernels run on the CPU, slowly, for tests.
"""

from __future__ import annotations

if __name__ == "kernels":
    raise ImportError("this folder is the package stochprune.kernels: install stochprune and import it by that name")

from functools import partial

import torch
from torch import Tensor

from stochprune import materialised
from stochprune.extras import extra
from stochprune.sparse_rows import sparse_linear

with extra("gpu", "the Triton backend"):
    import triton

from .calibrate import calibrate
from .gaussian import gaussian_grad, gaussian_weight, normal
from .keep_mask import keep_mask
from .kl import bernoulli_kl, bernoulli_kl_backward, gaussian_kl, gaussian_kl_backward
from .mask_backward import mask_backward
from .masked_linear import masked_linear, masked_linear_backward
from .moments import moments, moments_grad
from .multi_layer_grads import multi_layer_grads
from .multi_prepass import masked_weights
from .nm import nm_masked_weight, nm_weight_grad
from .prepass import mask_weight
from .routes import table as routing_table
from .threshold import threshold_from_logits

NAME = "triton"
MATRICES = False
masked_weight = partial(materialised.masked_weight, mask_weight)
weight_grad = partial(materialised.weight_grad, mask_backward)


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on a GPU, anything but float64, whose sums they would keep in float32."""
    return all((t.is_cuda or triton.knobs.runtime.interpret) and t.dtype != torch.float64 for t in tensors)


def describe() -> str:
    """The version of the compiler."""
    return f"Triton {triton.__version__}"


__all__ = [
    "MATRICES",
    "NAME",
    "bernoulli_kl",
    "bernoulli_kl_backward",
    "calibrate",
    "describe",
    "gaussian_grad",
    "gaussian_kl",
    "gaussian_kl_backward",
    "gaussian_weight",
    "keep_mask",
    "masked_linear",
    "masked_linear_backward",
    "masked_weight",
    "masked_weights",
    "moments",
    "moments_grad",
    "multi_layer_grads",
    "nm_masked_weight",
    "nm_weight_grad",
    "normal",
    "routing_table",
    "sparse_linear",
    "supports",
    "threshold_from_logits",
    "weight_grad",
]
