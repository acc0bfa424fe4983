# The compiled kernels; see csrc/bindings*.cpp, stochprune/native and stochprune/cuda.
from collections.abc import Sequence
from typing import TypeAlias

from torch import Tensor

from stochprune.address import KLTerm, Logits, Mask

_Array: TypeAlias = tuple[int, int, int]  # address or 0, row stride, dtype
_Size: TypeAlias = tuple[int, ...]  # rows, columns

def variable(name: str) -> str | None: ...  # an environment variable
def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def usual_linear(
    x: Tensor,
    weight: Tensor,
    logits: Tensor,
    bias: Tensor | None,
    seed: int | Tensor,
    draw: int | Tensor,
    stream: int,
    estimator: str,
    temperature: float,
    samples: int | None,
    row_offset: int,
    col_offset: int,
) -> bool: ...  # True: valid arguments of one draw on the CPU, which need no conversion

class Masked:  # a weight matrix under the masks of one or more draws
    def __init__(
        self,
        mask: Mask,
        weight: Tensor | None = None,
        logits: Logits | None = None,
        threshold: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> None: ...
    @property
    def shape(self) -> tuple[int, int]: ...

class Bits: ...  # hard masks, which the forward pass leaves to the backward pass

# Results are contiguous. ``part``: the first row and the number of rows; None for all rows.
def keep_mask(masked: Masked, keep: Tensor, threads: int) -> None: ...
def stochastic_round(masked: Masked, rounded: Tensor, threads: int) -> None: ...
def thresholds(logits: Logits, out: Tensor, threads: int) -> None: ...
def masked_weight(
    masked: Masked, out: Tensor, keep_bits: bool, threads: int, part: tuple[int, int] | None = None
) -> Bits | None: ...  # None if not wanted, or if the mask is soft
def weight_grad(
    masked: Masked,
    grad: Tensor,
    bits: Bits | None,
    to: tuple[Tensor | None, Tensor | None],  # dweight and dlogits
    threads: int,
    kl: KLTerm | None = None,
    add: bool = False,
    part: tuple[int, int] | None = None,
) -> None: ...
def has_tiles() -> bool: ...  # the instruction set has tile products: AMX

# x [D, M, K] and grad [D, M, N], or matrices, both bfloat16 or both float32. ``memory``: tile_bytes() bytes of scratch.
# False: a product of float32 is infinite or NaN, and the results are not those of float32.
def tile_bytes(masked: Masked, x: Tensor, threads: int) -> int: ...
def tile_forward(masked: Masked, x: Tensor, bias: Tensor | None, y: Tensor, memory: Tensor, threads: int) -> bool: ...
def tile_backward(
    masked: Masked,
    x: Tensor,
    grad: Tensor,
    dx: Tensor | None,
    to: tuple[Tensor | None, Tensor | None],
    kl: KLTerm | None,
    memory: Tensor,
    threads: int,
) -> bool: ...
def nm_masked_weight(masked: Masked, pattern: tuple[int, int], out: Tensor, threads: int) -> None: ...
def nm_weight_grad(
    masked: Masked,
    pattern: tuple[int, int],
    grad: Tensor,
    dweight: Tensor | None,
    dlogits: Tensor | None,
    threads: int,
) -> None: ...
def normal(mask: Mask, size: tuple[int, int], out: Tensor, threads: int) -> None: ...
def gaussian_weight(mask: Mask, mu: Tensor, rho: Tensor, out: Tensor, threads: int) -> None: ...
def gaussian_grad(mask: Mask, grad: Tensor, rho: Tensor, drho: Tensor, threads: int) -> None: ...
def moments(
    weight: Tensor, logits: Logits | None, rho: Tensor | None, mean: Tensor, variance: Tensor, threads: int
) -> None: ...
def moments_grad(
    dmean: Tensor,
    dvariance: Tensor,
    weight: Tensor,
    logits: Logits | None,
    rho: Tensor | None,
    dweight: Tensor,
    dlogits: Tensor | None,
    drho: Tensor | None,
    threads: int,
) -> None: ...
def sparse_linear(
    x: Tensor, values: Tensor, columns: Tensor, first: Tensor, bias: Tensor | None, out: Tensor, threads: int
) -> None: ...
def bernoulli_kl(logits: Logits, prior: Logits, threads: int) -> float: ...
def bernoulli_kl_grad(
    scale: float, logits: Logits, prior: Logits, dlogits: Tensor | None, dprior: Tensor | None, threads: int
) -> None: ...
def gaussian_kl(inputs: Sequence[Tensor | None], threads: int) -> float: ...
def gaussian_kl_grad(
    scale: float, inputs: Sequence[Tensor | None], grads: Sequence[Tensor | None], threads: int
) -> None: ...
def advise_huge_pages(address: int, bytes: int) -> None: ...

_Launch: TypeAlias = tuple[int, int]  # device, its CUDA stream

class cuda:  # a submodule, missing if there was no nvcc
    class Masked:
        """A weight matrix under the masks of one or more draws; seed, draw and rows by address."""
        def __init__(
            self,
            *,
            shape: _Size,
            seed: int,
            draw: int,
            draws: int,
            stream: int,
            row: int,
            col: int,
            estimator: int,
            temperature: float,
            weight: _Array = ...,
            logits: _Array = ...,
            threshold: _Array = ...,
            rows: int = 0,
        ) -> None: ...

    @staticmethod
    def keep_mask(launch: _Launch, masked: Masked, keep: int) -> None: ...
    @staticmethod
    def thresholds(launch: _Launch, size: _Size, logits: _Array, out: int) -> None: ...
    @staticmethod
    def masked_weight(launch: _Launch, masked: Masked, out: _Array) -> None: ...
    @staticmethod
    def weight_grad(
        launch: _Launch,
        masked: Masked,
        *,
        grad: _Array,
        prior: _Array,
        kl_grad: int,
        dweight: _Array,
        dlogits: _Array,
        masked_weight: _Array,
        add: bool,
    ) -> None: ...
