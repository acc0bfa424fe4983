"""Read SASS, the machine code of NVIDIA GPUs, and find races with Hopper's asynchronous matrix instructions.

An HGMMA instruction is still running when the next instructions are issued. If its left operand is in registers, it
reads them while it runs. So no instruction may write to these registers before a wait for this HGMMA; the hardware does
not check this. Every HGMMA that ends a group has the operand ``gsb0``. ``WARPGROUP.DEPBAR.LE gsb0, n`` waits until at
most the last n groups are running.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import triton

CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Instruction(NamedTuple):
    """One instruction; ``conditional`` is True if it is predicated."""

    address: int
    conditional: bool
    name: str  # with its modifiers
    operands: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.address:#x} {self.name} {', '.join(self.operands)}"


class Hazard(NamedTuple):
    """A race: ``writer`` overwrites a register of the left operand of ``matrix``, which may still read it."""

    matrix: Instruction
    writer: Instruction


class Code(NamedTuple):
    """The compiled code of a kernel."""

    registers: int  # per thread
    stack: int  # bytes per thread: spilled registers
    sass: str


def disassemble(cubin: bytes) -> Code:
    """Return the resources and the SASS of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, sass = (
            subprocess.run([CUOBJDUMP, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Code(int(found[1]), int(found[2]), sass)


LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+\s+)?([A-Z]\S*)\s*(.*?)\s*;", re.MULTILINE)


def parse(sass: str) -> list[Instruction]:
    """Return the instructions of one kernel in order."""
    return [
        Instruction(int(address, 16), bool(predicate), name, tuple(re.split(r",\s*", operands)) if operands else ())
        for address, predicate, name, operands in LINE.findall(sass)
    ]


def hazards(code: list[Instruction]) -> list[Hazard]:
    """Return the writes to a left operand that race with its HGMMA, at most one for each path from each HGMMA."""
    found = set()
    following = _following(code)
    for start, matrix in enumerate(code):
        left = _left_operand(matrix)
        # The state of a path is its position and the number of groups committed from this HGMMA on, with its own.
        seen, paths = set(), [(i, int(_commits(matrix))) for i in following[start]]
        while left and paths:
            at, groups = paths.pop()
            if (at, groups) in seen:
                continue
            seen.add((at, groups))
            instruction = code[at]
            if _waits_for(instruction) < groups:
                continue
            if not instruction.name.startswith("HGMMA") and left.intersection(written(instruction)):
                found.add(Hazard(matrix, instruction))
                continue
            groups = min(groups + _commits(instruction), MOST_GROUPS)
            paths += [(i, groups) for i in following[at]]
    return sorted(found)


def main_loop(code: list[Instruction]) -> list[Instruction]:
    """Return the instructions of the longest loop that multiplies matrices; an empty list if there is none."""
    loops = []
    for i, instruction in enumerate(code):
        target = re.fullmatch(r"0x[0-9a-f]+", instruction.operands[-1]) if instruction.name.startswith("BRA") else None
        if target is not None and int(target[0], 16) <= instruction.address:
            body = [other for other in code[: i + 1] if other.address >= int(target[0], 16)]
            loops.append(body if any(re.match(MATRIX, other.name) for other in body) else [])
    return max(loops, key=len, default=[])


MATRIX = r"(HGMMA|UTCHMMA|HMMA)\b"
"""Operations of the tensor cores."""
MOST_GROUPS = 8  # no wait allows more running groups


def _left_operand(instruction: Instruction) -> set[int]:
    # The operands are accumulator, left operand, right operand, ...; the left operand is four registers, or a
    # descriptor of shared memory.
    if not instruction.name.startswith("HGMMA") or not (register := re.fullmatch(r"R(\d+)", instruction.operands[1])):
        return set()
    return set(range(int(register[1]), int(register[1]) + 4))


def _commits(instruction: Instruction) -> bool:
    return instruction.name.startswith("HGMMA") and "gsb0" in instruction.operands


def _waits_for(instruction: Instruction) -> int:
    """Return how many groups may still be running after this instruction."""
    if not instruction.name.startswith("WARPGROUP.DEPBAR"):
        return MOST_GROUPS
    return int(instruction.operands[-1], 16)


def _following(code: list[Instruction]) -> list[list[int]]:
    """Return, for each instruction, the indices of those that may run next."""
    index = {instruction.address: i for i, instruction in enumerate(code)}

    def after(i: int) -> Iterator[int]:
        instruction = code[i]
        operation = instruction.name.split(".")[0]
        if operation in ("BRA", "CALL"):
            yield index[int(instruction.operands[-1], 16)]
        # BRA.U !UP0, 0x10 and BRA.DIV UR4, 0x10 have their condition as an operand.
        conditional = instruction.conditional or (operation == "BRA" and len(instruction.operands) > 1)
        if (operation not in ("BRA", "EXIT", "RET") or conditional) and i + 1 < len(code):
            yield i + 1

    return [list(after(i)) for i in range(len(code))]


NO_RESULT = ("BAR", "BMOV", "BRX", "CALL", "NANOSLEEP", "RET", "WARPSYNC")
"""Operations that may read, not write, the register in their first operand."""
BEHIND_PREDICATE = ("ATOM", "ATOMG", "ATOMS", "LOP3", "MATCH", "SHFL", "VOTE")
"""Operations whose first result may be a predicate and the second a register; comparisons write predicates only."""


def written(instruction: Instruction) -> range:
    """Return the registers that an instruction other than HGMMA writes."""
    operation, *modifiers = instruction.name.split(".")
    operands = instruction.operands
    if operation in BEHIND_PREDICATE:
        operands = tuple(o for o in operands if not re.fullmatch(r"P[\dT]", o))
    register = re.match(r"R(\d+)\b", operands[0]) if operands else None
    if register is None or operation in NO_RESULT:
        return range(0)
    return range(int(register[1]), int(register[1]) + _width(operation, modifiers))


def _width(operation: str, modifiers: list[str]) -> int:
    if operation == "LDSM":
        return int(modifiers[-1]) if modifiers[-1] in ("2", "4") else 1
    if operation == "HMMA":
        return 4 if "F32" in modifiers else 2
    if "128" in modifiers:
        return 4
    double = operation in ("DADD", "DMUL", "DFMA") or (operation == "CS2R" and "32" not in modifiers)
    to = modifiers[:1]  # the result type of a conversion
    return 2 if double or "64" in modifiers or to in (["WIDE"], ["F64"], ["S64"], ["U64"]) else 1
