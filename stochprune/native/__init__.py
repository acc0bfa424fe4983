"""The C++ backend of the CPU, a module with the functions of :mod:`stochprune.reference`.

It samples masks and writes masked weights to one workspace, which all layers share. Linear layers on a processor with
AMX need no masked weights in bfloat16, nor in float32 where torch's setting permits products of parts. The environment
variable STOCHPRUNE_CPU names the instruction set: amx, avx512, avx2 or scalar; the default is the best one of the
processor. ``amx-emulated`` is slow and for tests: it takes the path of AMX on any processor, with its tile instructions
in software.
"""

import os

import torch
from torch import Tensor

from stochprune import _C
from stochprune.materialised import compute_dtype
from stochprune.native import tiles
from stochprune.native.gaussian import gaussian_grad, gaussian_weight, normal
from stochprune.native.keep_mask import keep_mask
from stochprune.native.kl import bernoulli_kl, bernoulli_kl_backward, gaussian_kl, gaussian_kl_backward
from stochprune.native.masked_linear import masked_linear, masked_linear_backward
from stochprune.native.moments import moments, moments_grad
from stochprune.native.nm import nm_masked_weight, nm_weight_grad
from stochprune.native.results import FreedMemory, freed
from stochprune.native.sparse_linear import sparse_linear
from stochprune.native.stochastic_rounding import stochastic_round
from stochprune.native.thresholds import cache, threshold_from_logits
from stochprune.native.weight_ops import masked_weight, masked_weights, multi_layer_grads, weight_grad
from stochprune.native.workspace import Workspace, workspace

NAME = "native"
MATRICES = True
masked_convolution = None
DTYPES = (torch.float32, torch.bfloat16)


OVERRIDE = "STOCHPRUNE_CPU"
if forced := os.environ.get(OVERRIDE):
    try:
        _C.use_instruction_set(forced)
    except ValueError as error:
        raise ValueError(f"{OVERRIDE}: {error}") from error


def supports(*tensors: Tensor) -> bool:
    """Return True if the kernels take these tensors: on the CPU, float32, bfloat16, or integers (thresholds).

    Weights of eight bits are converted.
    """
    dtypes = (compute_dtype(t.dtype) for t in tensors if t.is_floating_point())
    return all(t.device.type == "cpu" for t in tensors) and all(dtype in DTYPES for dtype in dtypes)


def describe() -> str:
    """Return the instruction set in use, and the dtypes of linear layers that are now computed on tiles."""
    dtypes = "bfloat16 and float32" if tiles.reduced() else "bfloat16"
    return _C.instruction_set() + (f": {dtypes} linear layers on tiles" if _C.has_tiles() else "")


__all__ = [
    "DTYPES",
    "MATRICES",
    "NAME",
    "FreedMemory",
    "Workspace",
    "bernoulli_kl",
    "bernoulli_kl_backward",
    "cache",
    "describe",
    "freed",
    "gaussian_grad",
    "gaussian_kl",
    "gaussian_kl_backward",
    "gaussian_weight",
    "keep_mask",
    "masked_convolution",
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
    "stochastic_round",
    "supports",
    "threshold_from_logits",
    "weight_grad",
    "workspace",
]
