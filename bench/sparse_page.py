"""The page of what sparse weights buy: its tables and its text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bench.sparse_contenders import CONTENDERS
from bench.tables import table

WIN = 1.5
DENSE = ("dense", "torch.compile", "ONNX Runtime")
Row = dict[str, Any]

TEXT = """# What sparse weights buy

Pruned weights are zeros. Zeros alone make nothing faster and no file smaller: a program must know of them. These
tables say which programs do, on a CPU, for the weights that `stochprune.harden` leaves. (Whole rows, columns and
heads can be removed instead; every program gains from that.)

```sh
python -m bench.sparse
```

{machine}

Float32. The contenders of a layer take turns and the fastest call counts. Every result was first compared with the
product in float64. A number says how many times as fast a contender is as `nn.Linear` with the same weight, zeros
included; **bold** from 1.5 on. The last column compares `SparseLinear` with the fastest contender that multiplies the
zeros, for the dense product of torch is not the fastest one at every batch.

## In short

One thread, layers of 2^20 weights and more, 90 to 98 per cent of zeros (2:4: 50 per cent), batch 1 to 16.

{summary}

- *torch.compile* and *ONNX Runtime* multiply the zeros like other weights. What they gain or lose, they gain or
  lose with a dense weight too.
- *CSR* (`weight.to_sparse_csr()`) is a public layout of torch. Torch calls it beta.
- *BSR* stores blocks of 16 x 16. In an unstructured mask nearly no block is empty, so that it stores everything. It
  is meant for masks of whole blocks (`pattern="16x16"`).
- *semi-structured* is torch's layout of 2:4 weights for the tensor cores of a GPU, `stochprune.nn.semi_structured`.
  It does not run on a CPU.
- *SparseLinear* is our CPU kernel; `sp.sparsify(model)` replaces the layers of a hardened model by it where it
  gains.

## Large layers, one thread

{one_thread}

## Large layers, all threads

{all_threads}

## Small layers

In a small layer the call takes as long as the product. `sp.sparsify` leaves layers below 2^20 weights dense.

{small}

## Few zeros

A kept weight costs a sparse product several times what it costs a dense one. `sp.sparsify` leaves layers below 90
per cent dense. N:M masks such as 2:4 and 1:4 have 50 to 75 per cent of zeros.

{few_zeros}

## Other patterns

{patterns}

## File sizes

A layer of 1024 x 1024. *dense* is a safetensors file, *sparse* the file of `sp.save_sparse`: one bit for each
weight, and the values that are kept. Sizes are fractions of the dense file. 2:4 masks are stored as bits too: an
index of two bits for each of the two weights kept of four would take one bit for each weight as well.

{sizes}

A bit for each weight is more than a mask of few weights is worth: from 95 per cent on a zip of the dense file is
smaller than the sparse file, and a zip of the sparse file is smaller than both. The sparse file loads without a
pass through zip.

## What was not seen

- No GPU: *semi-structured* was not measured. `SparseLinear` has no kernel of its own there.
- Other processors. The kernel is compiled for AVX-512 and for plain SSE too, which were not timed here.
- Whole networks. Activations, norms and attention take time too, and gain nothing.
- Pruned networks. These masks are random; the rows of pruned networks differ in their sparsity, and the threads
  share the kept weights evenly.
"""


def gain(row: Row, name: str) -> float | None:
    """Return the speed of a contender divided by that of the dense layer; None if the contender is missing."""
    return row["ms"]["dense"] / row["ms"][name] if name in row["ms"] else None


def against_fastest_dense(row: Row) -> float:
    """Return the speed of SparseLinear divided by that of the fastest contender that multiplies the zeros."""
    return min(row["ms"][name] for name in DENSE if name in row["ms"]) / row["ms"]["SparseLinear"]


def cell(ratio: float | None) -> str:
    """Return a ratio as text, bold from 1.5 on."""
    return "" if ratio is None else f"**{ratio:.1f}**" if ratio >= WIN else f"{ratio:.2f}"


def speeds(rows: Iterable[Row]) -> str:
    """Ratios by layer and batch."""
    rows = list(rows)
    names = [name for name in CONTENDERS if name != "dense" and any(name in row["ms"] for row in rows)]
    lines = [
        [
            "{} x {}".format(*row["shape"]),
            row["pattern"],
            f"{100 * row['sparsity']:.0f} %",
            str(row["batch"]),
            f"{row['ms']['dense']:.3f}",
            *(cell(gain(row, name)) for name in names),
            cell(against_fastest_dense(row)),
        ]
        for row in rows
    ]
    return table(["layer", "zeros", "sparsity", "batch", "dense, ms", *names, "SparseLinear / fastest dense"], lines)


def summary(rows: Sequence[Row]) -> str:
    """The smallest and the largest ratio of each contender by pattern: large layers, 90 per cent and more or 2:4."""
    rows = [row for row in rows if row["shape"][0] * row["shape"][1] >= 1 << 20 and row["batch"] <= 16]
    lines = []
    for pattern in ("unstructured", "blocks", "2:4"):
        some = [row for row in rows if row["pattern"] == pattern and (pattern == "2:4" or row["sparsity"] > 0.89)]
        for name in CONTENDERS:
            if name == "dense":
                continue
            ratios = [ratio for row in some if (ratio := gain(row, name)) is not None]
            missing = next((row["missing"][name] for row in some if name in row["missing"]), "")
            if ratios:
                verdict = "yes" if min(ratios) >= WIN else "no" if max(ratios) < WIN else "in part"
                lines.append([pattern, name, f"{min(ratios):.2f} to {max(ratios):.2f}", verdict])
            else:
                lines.append([pattern, name, "", f"not measured: {missing}"])
    return table(["zeros", "run by", "times as fast as dense", f"at least {WIN} times"], lines)


def sizes(rows: Sequence[Row]) -> str:
    """Sizes as fractions of the dense file."""
    names = ["zip of dense", "sparse", "zip of sparse"]
    lines = [
        [
            row["dtype"],
            row["pattern"],
            f"{100 * row['sparsity']:.0f} %",
            f"{row['bytes']['dense']:,}",
            *(f"{row['bytes'][name] / row['bytes']['dense']:.3f}" for name in names),
        ]
        for row in rows
    ]
    return table(["dtype", "zeros", "sparsity", "dense, bytes", *names], lines)


def page(about: Row, speed: dict[str, list[Row]], files: list[Row]) -> str:
    """The page of results."""
    software = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    hardware = f"{about['processor']}, {about['cores']} cores, load average {about['load']:.1f} at the start"
    return TEXT.format(
        machine=f"{hardware}. Kernels in {about['instruction_set']}. {software}. Commit {about['commit'][:10]}.",
        summary=summary([row for rows in speed.values() for row in rows if row["threads"] == 1]),
        sizes=sizes(files),
        **{name: speeds(rows) for name, rows in speed.items()},
    )
