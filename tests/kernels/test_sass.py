"""The scan for races in Hopper's machine code: what it reads, what it finds, and that it would find ours."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sass

ROOT = Path(__file__).parents[2]
LOOP = [
    "IMAD.WIDE.U32 R8, R2, 0x5, RZ",
    "HGMMA.64x128x16.F32.BF16 R24, R8, gdesc[UR4], R24",
    "LOP3.LUT R13, R9, R10, RZ, 0x3c, !PT",
    "HGMMA.64x128x16.F32.BF16 R24, R12, gdesc[UR4], R24, gsb0",
    "WARPGROUP.DEPBAR.LE gsb0, {left}",
    "IADD3 R2, R2, 0x1, RZ",
    "@P1 BRA 0x0000",
    "WARPGROUP.DEPBAR.LE gsb0, 0x0",
    "IMAD.MOV.U32 R10, RZ, RZ, R24",
    "EXIT",
]


def listing(*lines: str, **values: str) -> list[sass.Instruction]:
    """As cuobjdump prints it."""
    text = "\n".join(f"        /*{16 * i:04x}*/  {line.format(**values)} ;  /* 0x0 */" for i, line in enumerate(lines))
    return sass.parse(text)


def found(code: list[sass.Instruction]) -> list[tuple[int, int]]:
    """Which instruction of a listing writes what which HGMMA reads."""
    return [(hazard.matrix.address // 16, hazard.writer.address // 16) for hazard in sass.hazards(code)]


def test_the_loop_is_safe_when_every_group_is_waited_for() -> None:
    assert found(listing(*LOOP, left="0x0")) == []


def test_a_group_left_running_at_the_end_of_the_loop_is_found() -> None:
    assert found(listing(*LOOP, left="0x1")) == [(1, 0), (3, 2)]


def test_a_write_before_the_wait_is_found() -> None:
    early = [*LOOP[:4], "LDS.128 R8, [R3]", *LOOP[4:]]
    assert found(listing(*early, left="0x0")) == [(1, 4)]


def test_an_older_group_ends_first() -> None:
    """A wait for all but one group ends the older one and leaves the younger."""
    straight = [
        "HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], R24, gsb0",
        "HGMMA.64x16x16.F32.BF16 R24, R12, gdesc[UR4], R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1",
        "MOV R8, R2",
        "@!P0 MOV R15, R2",
        "EXIT",
    ]
    assert found(listing(*straight)) == [(1, 4)]


def test_operands_in_shared_memory_race_with_nothing() -> None:
    assert found(listing(*(line.replace("R24, R", "R24, gdesc[UR8], R") for line in LOOP), left="0x1")) == []


def test_both_ways_of_a_branch_are_followed() -> None:
    code = ["HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], R24, gsb0", "@P0 BRA 0x0030", "EXIT", "CS2R R6, SRZ", "EXIT"]
    assert found(listing(*code)) == []
    assert found(listing(*(line.replace("R6", "R10") for line in code))) == [(0, 3)]


@pytest.mark.parametrize("branch", ["BRA.U !UP0, 0x0030", "BRA.DIV UR4, 0x0030", "BRA P1, 0x0030"])
def test_a_branch_whose_condition_is_an_operand_may_not_be_taken(branch: str) -> None:
    code = ["HGMMA.64x16x16.F32.BF16 R24, R8, gdesc[UR4], R24, gsb0", branch, "MOV R8, R2", "EXIT"]
    assert found(listing(*code)) == [(0, 2)]


@pytest.mark.parametrize(
    "line, registers",
    [
        ("IMAD.WIDE.U32 R92, R7, -0x326172a9, RZ", [92, 93]),
        ("LOP3.LUT P0, R5, R3, R4, RZ, 0x3c, !PT", [5]),
        ("LDSM.16.M88.4 R112, [R91+UR9+0x14000]", [112, 113, 114, 115]),
        ("LDG.E.64.CONSTANT R4, desc[UR6][R2.64]", [4, 5]),
        ("STG.E.128 desc[UR6][R2.64], R4", []),
        ("ISETP.GE.AND P0, PT, R4, R5, PT", []),
        ("SHFL.BFLY PT, R9, R8, 0x1, 0x1f", [9]),
        ("HMMA.16816.F32.BF16 R4, R8, R12, R4", [4, 5, 6, 7]),
        ("CS2R.32 R3, SR_CLOCKLO", [3]),
        ("MUFU.EX2 R3, R4", [3]),
        ("R2UR UR4, R2", []),
        ("F2F.F32.F64 R2, R4", [2]),
        ("DADD R2, R4, R6", [2, 3]),
        ("EXIT", []),
    ],
)
def test_written_registers(line: str, registers: list[int]) -> None:
    assert list(sass.written(listing(line)[0])) == registers


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="no Triton")
def test_the_product_without_its_wait_is_found(compiler_environment: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.unsettled"],
        cwd=ROOT,
        env=compiler_environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
