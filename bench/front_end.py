"""Check how the kernels treat their integer arguments, in Triton's intermediate representation; needs no GPU.

    python -m bench.front_end    # exit status 1 on a fault

- An argument that is 1 becomes a Python int, which has no method ``.to``. So each kernel is translated with every
  integer argument set to 1, one at a time.
- No launch exceeds the limits of a grid, even with more draws than the axes y and z allow.
- Arguments below 2^31 are 32-bit integers, and so are positions computed from them. A product of two of them, such as a
  row and a stride, overflows in a tensor of 2^31 elements. So every product of two variables must have 64 bits.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator

import torch

from stochprune.address import Logits, Mask
from stochprune.kernels.masked_matmul import masked_matmul
from stochprune.kernels.prepass import mask_weight
from stochprune.kernels.thresholds import packed_thresholds
from stochprune.kernels.weight_grad_matmul import weight_grad_matmul

from .compile_table import specialise
from .kernel_cases import Case, cases, meta
from .launches import Specialisation, recorded

ARCH = 90
DRAWS = 70_000


def ones(specialisation: Specialisation) -> Iterator[tuple[str, Specialisation]]:
    """Yield each integer argument that Triton specialises if it is 1, and the specialisation in which it is 1."""
    for i, parameter in enumerate(specialisation.function.params):
        type_ = specialisation.signature[parameter.name]
        if re.fullmatch(r"[iu]\d+", type_) and not parameter.do_not_specialize and not parameter.annotation_type:
            yield (
                parameter.name,
                specialisation._replace(
                    signature={**specialisation.signature, parameter.name: "constexpr"},
                    constants={**specialisation.constants, (i,): 1},
                    attributes={at: value for at, value in specialisation.attributes.items() if at != (i,)},
                ),
            )


DEFINITION = re.compile(r"(%[\w#]+)(?::\d+)? = ([\w.]+) ?(.*)")
CONVERSIONS = ("arith.extsi", "arith.extui", "arith.trunci", "tt.splat", "tt.broadcast", "tt.expand_dims")


def narrow_products(program: str) -> list[str]:
    """Return the 32-bit integer products of two variables in a program."""
    constants: set[str] = set()
    found = []
    for line in program.splitlines():
        if "tt.func" in line:
            constants.clear()
        definition = DEFINITION.search(line)
        if definition is None:
            continue
        result, operation, rest = definition.groups()
        operands = re.findall(r"%[\w#]+", rest)
        if operation == "arith.constant" or (operation in CONVERSIONS and constants.issuperset(operands)):
            constants.add(result)
        elif operation == "arith.muli" and re.search(r"[:x] ?i32\b", rest) and constants.isdisjoint(operands):
            found.append(line.strip())
    return found


def faults(case: Case) -> Iterator[str]:
    """Yield the faults of a case's kernel."""
    specialisation = specialise(case, ARCH)
    name = ".".join(specialisation.kernel)
    yield from (f"{name}: {product}" for product in narrow_products(specialisation.ir(ARCH)))
    for argument, one in ones(specialisation):
        try:
            one.ir(ARCH)
        except Exception as error:  # the compiler may raise any error
            yield f"{name}: {argument} = 1: {error}"


def many_draws() -> Iterator[str]:
    """Yield the reasons for which a GPU would refuse the launches for many draws at once."""
    half, numbers = torch.bfloat16, meta(DRAWS, dtype=torch.int64)
    weight, x = Logits(meta(8, 64, dtype=half)), meta(DRAWS, 2, 64, dtype=half)
    y, mask = meta(DRAWS, 2, 8, dtype=half), Mask(numbers[:1], numbers, 1)
    with recorded(ARCH) as launches:
        packed = packed_thresholds(weight)
        mask_weight(weight, weight, mask=mask, dtype=half)
        masked_matmul(x, weight, weight, None, mask=mask, out=y)
        masked_matmul(x, weight, weight, None, mask=mask, out=y, thresholds=packed)
        weight_grad_matmul(y, x, weight, weight, mask=mask, dweight=weight, dlogits=weight)
    for launch in launches:
        yield from (f"{'.'.join(launch.specialisation.kernel)}: {fault}" for fault in launch.faults())


def main() -> int:
    one_an_op = {(case.op, any(case.first)): case for case in cases()}  # whole matrices and shards
    found = [*many_draws(), *(fault for case in one_an_op.values() for fault in faults(case))]
    print("\n".join(found))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
