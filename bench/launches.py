"""Record the launches that Triton would make on a GPU, without a GPU, and compile their kernels."""

from __future__ import annotations

import functools
import hashlib
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from . import sass

GRID = (2**31 - 1, 65535, 65535)
"""The maximum number of programs along each axis of a launch."""
SHARED = {80: 100 << 10, 90: 227 << 10, 100: 227 << 10}
"""Bytes of shared memory that a program may use, by architecture; for 80 the limit of sm_86 and sm_89, the smallest."""
SPILLED = 64
"""Bytes that a thread may spill if rows are not a multiple of 16 elements. Each element then needs registers for its
address, and a few words in the first-level cache cost less than smaller tiles."""


class Specialisation(NamedTuple):
    """The specialisation of a kernel, without objects of Triton, so that it can be stored."""

    kernel: tuple[str, str]  # module and name
    signature: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], Any]
    options: dict[str, Any]

    @property
    def key(self) -> str:
        """Return a text that two launches share if the kernel is compiled once for both."""
        return repr(tuple(self))

    @property
    def function(self) -> JITFunction:
        """Return the kernel."""
        module, name = self.kernel
        return getattr(importlib.import_module(module), name)

    @property
    def named(self) -> dict[str, Any]:
        """Return the constants by the names of the parameters."""
        parameters = [parameter.name for parameter in self.function.params]
        return {parameters[at[0]]: value for at, value in self.constants.items()}

    def compile(self, arch: int) -> Compiled:
        """Compile for sm_``arch`` and read the machine code."""
        compiled = triton.compile(self.source(), target=GPUTarget("cuda", arch, 32), options=self.options)
        return Compiled(sass.disassemble(compiled.asm["cubin"]), compiled.metadata.shared)

    def ir(self, arch: int) -> str:
        """Return Triton's intermediate representation before optimisation; much faster than compiling."""
        target, context = GPUTarget("cuda", arch, 32), ir.context()
        backend = make_backend(target)
        ir.load_dialects(context)
        backend.load_dialects(context)
        options = backend.parse_options(self.options)
        helpers = backend.get_codegen_implementation(options), backend.get_module_map()
        return str(self.source().make_ir(target, options, *helpers, context))

    def source(self) -> ASTSource:
        """Return the arguments of Triton's compiler."""
        return ASTSource(self.function, self.signature, self.constants, self.attributes)


def content(specialisation: Specialisation) -> str:
    """Return a key of the compiled code: Triton's version, the kernel's source and line, and the specialisation."""
    text = f"{triton.__version__} {specialisation.function.cache_key} {specialisation.key}"
    return hashlib.blake2s(text.encode()).hexdigest()


class Compiled(NamedTuple):
    """The machine code of a kernel and the shared memory of a program in bytes."""

    code: sass.Code
    shared: int


class Launch(NamedTuple):
    """One launch that was recorded and not made."""

    specialisation: Specialisation
    grid: tuple[int, ...]

    def faults(self) -> list[str]:
        """Return the reasons for which a GPU would refuse the launch, for any compiled code."""
        limits = zip("xyz", self.grid, GRID, strict=False)
        return [f"{size} programs along {axis}" for axis, size, most in limits if not 0 < size <= most]


@contextmanager
def recorded(arch: int) -> Iterator[list[Launch]]:
    """Give a list to which launches inside the block are appended, as for sm_``arch``; they are not made."""
    launches: list[Launch] = []
    backend = make_backend(GPUTarget("cuda", arch, 32))

    @functools.cache
    def binder(kernel: JITFunction) -> Callable[..., Any]:
        return create_function_from_signature(kernel.signature, kernel.params, backend)

    def run(kernel: JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        bound, specialisation, given = binder(kernel)(*args, **{"debug": False, **options})
        parsed, signature, constants, attributes = kernel._pack_args(backend, given, bound, specialisation, given)
        name = (kernel.fn.__module__, kernel.fn.__name__)
        what = Specialisation(name, signature, constants, attributes, dict(parsed.__dict__))
        launches.append(Launch(what, grid(bound) if callable(grid) else grid))

    with mock.patch.object(JITFunction, "run", run):
        yield launches
