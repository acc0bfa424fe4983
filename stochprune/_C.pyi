# The compiled kernels, by raw address; see csrc/bindings*.cpp, stochprune/native and stochprune/cuda.
from typing import TypeAlias

_Key: TypeAlias = tuple[int, int, int, int, int]  # seed, draw, stream, first row, first column
_Array: TypeAlias = tuple[int, int, int]  # address or 0, row stride, dtype
_Size: TypeAlias = tuple[int, ...]  # rows, columns

def instruction_sets() -> list[str]: ...
def instruction_set() -> str: ...
def use_instruction_set(name: str) -> None: ...
def keep_mask(key: _Key, size: _Size, threshold: _Array, mask: _Array, threads: int) -> None: ...
def thresholds(size: _Size, logits: _Array, out: _Array, threads: int) -> bool: ...
def masked_weight(
    key: _Key,
    size: _Size,
    estimator: int,
    temperature: float,
    weight: _Array,
    logits: _Array,
    threshold: _Array,
    out: _Array,
    kept: _Array,
    threads: int,
    rows: int,
) -> bool: ...
def weight_grad(
    key: _Key,
    size: _Size,
    estimator: int,
    temperature: float,
    grad: _Array,
    weight: _Array,
    logits: _Array,
    threshold: _Array,
    kept: _Array,
    prior: _Array,
    scale: float,
    dweight: _Array,
    dlogits: _Array,
    accumulate: bool,
    threads: int,
    rows: int,
) -> None: ...
def nm_masked_weight(
    key: _Key, size: _Size, pattern: tuple[int, int], weight: _Array, logits: _Array, out: _Array, threads: int
) -> bool: ...
def nm_weight_grad(
    key: _Key,
    size: _Size,
    pattern: tuple[int, int],
    grad: _Array,
    weight: _Array,
    logits: _Array,
    dweight: _Array,
    dlogits: _Array,
    accumulate: bool,
    threads: int,
) -> None: ...
def moments(
    size: _Size, weight: _Array, logits: _Array, rho: _Array, mean: _Array, variance: _Array, threads: int
) -> bool: ...
def moments_grad(
    size: _Size,
    dmean: _Array,
    dvariance: _Array,
    weight: _Array,
    logits: _Array,
    rho: _Array,
    dweight: _Array,
    dlogits: _Array,
    drho: _Array,
    threads: int,
) -> None: ...
def gaussian_weight(key: _Key, size: _Size, mu: _Array, rho: _Array, out: _Array, threads: int) -> None: ...
def gaussian_grad(
    key: _Key, size: _Size, grad: _Array, rho: _Array, drho: _Array, accumulate: bool, threads: int
) -> None: ...
def bernoulli_kl(count: int, logits: _Array, prior: _Array, threads: int) -> float: ...
def bernoulli_kl_grad(
    count: int, scale: float, logits: _Array, prior: _Array, dlogits: _Array, dprior: _Array, threads: int
) -> None: ...
def gaussian_kl(count: int, inputs: list[_Array], threads: int) -> float: ...
def gaussian_kl_grad(count: int, scale: float, inputs: list[_Array], grads: list[_Array], threads: int) -> None: ...
def advise_huge_pages(address: int, bytes: int) -> None: ...

_Place: TypeAlias = tuple[int, int]  # device, its stream

class cuda:  # a submodule; its keys hold the addresses of seed and draw. Missing where there was no nvcc
    @staticmethod
    def keep_mask(place: _Place, key: _Key, size: _Size, threshold: _Array, mask: int) -> None: ...
    @staticmethod
    def thresholds(place: _Place, size: _Size, logits: _Array, out: int) -> None: ...
    @staticmethod
    def masked_weight(
        place: _Place,
        key: _Key,
        draws: int,
        size: _Size,
        estimator: int,
        temperature: float,
        weight: _Array,
        logits: _Array,
        out: _Array,
        rows: int,
    ) -> None: ...
    @staticmethod
    def weight_grad(
        place: _Place,
        key: _Key,
        size: _Size,
        estimator: int,
        temperature: float,
        grad: _Array,
        weight: _Array,
        logits: _Array,
        prior: _Array,
        kl_grad: int,
        dweight: _Array,
        dlogits: _Array,
        add: bool,
        rows: int,
    ) -> None: ...
