"""The CUDA C++ backend: the elementwise passes compiled ahead of time, the products by cuBLAS. It needs no Triton.

A module with the functions of :mod:`stochprune.reference`. It is there where nvcc was when the extension was built.
"""

from torch import Tensor

from stochprune.cuda.masked_linear import masked_linear, masked_linear_backward
from stochprune.cuda.passes import keep_mask, mask_weight, threshold_from_logits, through_mask
from stochprune.native.arrays import CODES
from stochprune.products import weight_ops
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

NAME = "cuda"
masked_weight, weight_grad = weight_ops(mask_weight, through_mask)


def supports(*tensors: Tensor) -> bool:
    """Whether the kernels take these tensors: on a GPU, any floating dtype but float64; thresholds of any kind."""
    return all(t.is_cuda and (t.dtype in CODES or not t.is_floating_point()) for t in tensors)


__all__ = [
    "NAME",
    "bernoulli_kl",
    "bernoulli_kl_backward",
    "gaussian_grad",
    "gaussian_kl",
    "gaussian_kl_backward",
    "gaussian_weight",
    "keep_mask",
    "masked_linear",
    "masked_linear_backward",
    "masked_weight",
    "moments",
    "moments_grad",
    "nm_masked_weight",
    "nm_weight_grad",
    "normal",
    "supports",
    "threshold_from_logits",
    "weight_grad",
]
