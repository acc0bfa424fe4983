"""export: a hardened model of transformers as plain files with exact zeros, and what is known of its sparsity."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from stochprune import patterns
from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.nn import masked_layers
from stochprune.scores import by_output, prunable_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SIDECAR = "sparsity.json"
CONFIGS = ("quantization_config", "sparsity_config")
CARD = """---
tags: [pruned]
---
# A pruned model

{sparsity:.2%} of the {count:,} weights that can be pruned are exactly zero{pattern}. Pruned by stochprune.

The files are those of a dense model, so every program that loads the dense model loads this one. They have no
`sparsity_config` and no `quantization_config`: programs that serve models refuse these, or expect another format. The
zeros take memory and time like other values until a program makes use of them. `{sidecar}` lists the sparsity of each
weight.

| weight | shape | zeros |
|---|---|---|
{rows}
"""


@checked
def export(model: Any, folder: str | Path, *, pattern: str | None = None, tokenizer: Any = None) -> Path:
    """Write a pruned model of transformers as plain safetensors with exact zeros, for any program that loads it.

    The folder has the files of ``save_pretrained`` without ``quantization_config`` and ``sparsity_config``, a model
    card ``README.md``, and ``sparsity.json`` with the pattern and the sparsity of each weight. It is written completely
    or not at all; a folder that an earlier export has written is replaced.

    Args:
        model: from :func:`stochprune.harden`.
        folder: new, empty, or of an earlier export.
        pattern: n:m, such as ``"2:4"``, which every pruned weight must have, one with at least half the zeros of the
            pattern. A dense weight may have a few zeros, such as the row of a padding token.
        tokenizer: of transformers; its files are written too.

    Returns:
        The folder.

    Raises:
        MissingExtraError: transformers is not installed.
        TypeError: not a model of transformers.
        ValueError: masked layers in the model, no zeros, weights without the pattern, a folder with other files, or
            the current folder.
    """
    with extra("hf", "export"):
        from transformers import PreTrainedModel
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"export: model must be a PreTrainedModel of transformers, got {type(model).__name__}")
    if masked := list(masked_layers(model)):
        raise ValueError(f"export: {', '.join(masked[:3])} are masked: call stochprune.harden(model) first")
    own = {name: module for name, module in model.named_modules() if type(module).__module__.startswith("stochprune.")}
    if own:
        name, module = next(iter(own.items()))
        raise ValueError(
            f"export: {name} is {type(module).__name__}, which other programs do not load: make it plain first, LoRA "
            "by stochprune.nn.merge_lora"
        )
    layers = _layers(model, pattern)
    given, folder = Path(folder), Path(os.path.realpath(folder))  # a link cannot be replaced, what it names can
    if folder.exists() and folder.samefile("."):
        raise ValueError(f"export: folder {given} is the current one, which would be replaced: name another")
    if folder.exists() and not (folder.is_dir() and (not any(folder.iterdir()) or (folder / SIDECAR).is_file())):
        raise ValueError(f"export: folder {folder} holds other files: choose a new one")
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial")  # what a killed export left is written again
    shutil.rmtree(partial, ignore_errors=True)
    _save(model, partial)
    if tokenizer is not None:
        tokenizer.save_pretrained(partial)
    pruned = sum(round(layer["sparsity"] * layer["count"]) for layer in layers.values())
    count = sum(layer["count"] for layer in layers.values())
    content = {"pattern": pattern, "sparsity": pruned / count, "layers": layers}
    (partial / SIDECAR).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (partial / "README.md").write_text(_card(content, count), encoding="utf-8")
    if folder.exists():
        shutil.rmtree(folder)
    partial.rename(folder)
    return given


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write model and configuration, without what names a format of quantised or sparse weights."""
    hidden = {name: vars(model.config).pop(name) for name in CONFIGS if name in vars(model.config)}
    try:
        model.save_pretrained(folder)
    finally:
        vars(model.config).update(hidden)


def _layers(model: PreTrainedModel, pattern: str | None) -> dict[str, dict[str, Any]]:
    """Return shape, number of weights and sparsity of every weight that can be pruned, by name.

    Raises:
        ValueError: no weight is zero, or a pruned one does not have the pattern.
    """
    found = {}
    n, m = (1, 1) if pattern is None else patterns.parse(pattern, "export")
    for name, weight in prunable_weights(model, include="*").items():
        share = int((weight == 0).sum()) / weight.numel()
        rows = by_output(model, {name: weight.detach()})[name]
        if pattern is not None and share >= (1 - n / m) / 2 and not _has(rows, n, m):
            raise ValueError(f"export: {name} has groups with more weights than pattern {pattern} keeps")
        found[name] = {"shape": list(weight.shape), "count": weight.numel(), "sparsity": share}
    if not any(layer["sparsity"] for layer in found.values()):
        raise ValueError("export: no weight of the model is zero: prune it first")
    return found


def _has(weight: Tensor, n: int, m: int) -> bool:
    """Return True if every group of m weights of a row has at most n that are not zero."""
    return weight.shape[1] % m == 0 and bool(((weight != 0).view(-1, m).sum(dim=1) <= n).all())


def _card(content: dict[str, Any], count: int) -> str:
    rows = [
        f"| `{name}` | {' x '.join(map(str, layer['shape']))} | {layer['sparsity']:.2%} |"
        for name, layer in content["layers"].items()
    ]
    pattern = f", in the pattern {content['pattern']}" if content["pattern"] else ""
    return CARD.format(
        sparsity=content["sparsity"], count=count, pattern=pattern, sidecar=SIDECAR, rows="\n".join(rows)
    )
