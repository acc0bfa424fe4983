"""The CUDA C++ backend: the elementwise passes compiled ahead of time, the products by cuBLAS. It needs no Triton.

A module with the functions of :mod:`stochprune.reference`. It is there where nvcc was when the extension was built.
"""

from functools import partial

from torch import Tensor

from stochprune import materialised
from stochprune.cuda.masked_linear import masked_linear, masked_linear_backward
from stochprune.cuda.passes import keep_mask, mask_backward, mask_weight, threshold_from_logits
from stochprune.native.arrays import CODES
from stochprune.reference import (  # in torch's own kernels
    bernoulli_kl,
    bernoulli_kl_backward,
    gaussian_grad,
    gaussian_kl,
    gaussian_kl_backward,
    gaussian_weight,
    moments,
    moments_grad,
    nm_masked_weight,
    nm_weight_grad,
    normal,
)
from stochprune.sparse_rows import sparse_linear

NAME = "cuda"
MATRICES = False
masked_weight = partial(materialised.masked_weight, mask_weight)
weight_grad = partial(materialised.weight_grad, mask_backward)
masked_weights = partial(materialised.masked_weights, masked_weight)
multi_layer_grads = partial(materialised.multi_layer_grads, weight_grad)


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on a GPU, any floating dtype but float64; thresholds of any kind."""
    return all(t.is_cuda and (t.dtype in CODES or not t.is_floating_point()) for t in tensors)


def describe() -> str:
    """Return nothing worth telling."""
    return ""


__all__ = [
    "MATRICES",
    "NAME",
    "bernoulli_kl",
    "bernoulli_kl_backward",
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
    "sparse_linear",
    "supports",
    "threshold_from_logits",
    "weight_grad",
]
