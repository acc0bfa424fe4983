"""Memory for results: that of large results is used again after they are freed, as torch does on a GPU."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stochprune import _C

LARGE = 32 << 20  # bytes; glibc maps new memory for anything larger, and gives freed memory back to the system

Memory = NDArray[np.uint8]


def untouched(nbytes: int) -> Tensor:
    """Return new memory, uint8 [nbytes]; if large, of huge pages, to save page faults when it is first written."""
    memory = torch.empty(nbytes, dtype=torch.uint8, device="cpu")
    if nbytes >= LARGE:
        _C.advise_huge_pages(memory.data_ptr(), nbytes)
    return memory


class FreedMemory:
    """Memory of large results that were freed, for new results of the same size.

    The first write to new memory costs a page fault for each page. For the two gradients of a 4096 x 4096 layer in
    float32 this is a tenth to a quarter of a backward pass. In a virtual machine whose host takes free memory back
    ("free page reporting") it can be more than the whole backward pass.

    Results are freed in any thread, inside any function of torch, and while the garbage collector interrupts any line
    here, or any object that is made. Each change is therefore one operation on a dictionary, which needs no lock, and
    what is read from it is first copied in one step. The memory is in arrays, because a mode that sees torch's
    functions would see what is done to a tensor.

    Attributes:
        budget: the most bytes that are kept; the memory that was freed first goes first. 0 keeps nothing.
    """

    budget = 512 << 20

    def __init__(self) -> None:
        self._kept: dict[int, Memory] = {}

    @property
    def nbytes(self) -> int:
        """The bytes that are kept now."""
        return sum(memory.nbytes for memory in list(self._kept.values()))

    def take(self, nbytes: int) -> Memory:
        """Return memory of this size, [nbytes], with any content: what was freed last, or new memory."""
        # Not items(): a list of them makes tuples, and making one can collect garbage, which changes the dictionary.
        for memory in reversed(list(self._kept.values())):
            if memory.nbytes == nbytes and self._kept.pop(id(memory), None) is not None:
                return memory
        return untouched(nbytes).numpy()

    def put(self, memory: Memory) -> None:
        """Keep memory that nothing uses, if the budget allows it."""
        if torch.compiler.is_compiling():
            return  # Dynamo traces what runs in a compiled function, and takes ids for constants
        if memory.nbytes <= self.budget:
            self._kept[id(memory)] = memory
        for key in list(self._kept):
            if self.nbytes <= self.budget:
                break
            self._kept.pop(key, None)

    def release(self) -> None:
        """Give all memory that is kept back to the system."""
        self._kept.clear()


freed = FreedMemory()


def fresh(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised tensor on the CPU. If large, its memory goes to :data:`freed` when nothing uses it.

    The storage of a large one cannot be resized, as of every tensor that shares the memory of a NumPy array.
    """
    nbytes = math.prod(shape) * dtype.itemsize
    if nbytes < LARGE or torch.compiler.is_compiling():  # it is True while Dynamo traces a backward pass
        return torch.empty(shape, dtype=dtype, device="cpu")
    memory = freed.take(nbytes)
    owner = memory.view()  # lives as long as the storage of the result, however many tensors share that
    weakref.finalize(owner, freed.put, memory).atexit = False
    strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    storage = torch.from_numpy(owner).untyped_storage()
    return torch.empty(0, dtype=dtype, device="cpu").set_(storage, 0, shape, strides)


def fresh_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return :func:`fresh` memory of the shape of a contiguous tensor."""
    if tensor.numel() * dtype.itemsize < LARGE:
        return torch.empty_like(tensor, dtype=dtype)  # half the calls of torch.empty
    return fresh(tuple(tensor.shape), dtype)


def fresh_product(a: Tensor, b: Tensor) -> Tensor:
    """Return the matrix ``a @ b`` in :func:`fresh` memory."""
    rows, cols = a.shape[0], b.shape[1]
    if rows * cols * b.dtype.itemsize < LARGE:
        return torch.mm(a, b)
    return torch.mm(a, b, out=fresh((rows, cols), b.dtype))
