"""Wanda for experts in one tensor: each expert has the inputs of the tokens that reach it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.data.batch_loss import BatchLoss, count_examples
from stochprune.extras import extra
from stochprune.integrations.transformers.experts import experts_of, has_hook, watched_experts

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel


@torch.no_grad()
def wanda_of_experts(
    model: PreTrainedModel, batches: Iterable[Any], wanted: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Return ``|w_ij| |x_j|`` of the experts by weight name, of the weights' shapes, in float32 or wider.

    ``|x_j|`` is the norm of input j over the tokens that reach the expert, per example, as in
    :func:`stochprune.scores.wanda` (Sun et al. 2024, arXiv 2306.11695, equation 1). So an expert that few tokens reach
    has low scores beside other experts. One that no token reaches has the order of the magnitudes, far below others.

    Args:
        model: dense, in the mode in which it shall run.
        batches: as for :func:`stochprune.scores.wanda`.
        wanted: the names of the weights to score; default: all. Experts without transformers' experts interface have no
            score.
    """
    found: dict[str, _Squares] = {}
    watches = {}
    for prefix, experts in experts_of(model).items():
        parts = {name: _Squares(experts, name) for name, _ in experts.named_parameters(recurse=False)}
        chosen = {
            name: part
            for name, part in parts.items()
            if part.weight.dim() == 3 and (wanted is None or f"{prefix}.{name}" in wanted)
        }
        if has_hook(type(experts)) and chosen:
            found |= {f"{prefix}.{name}": part for name, part in chosen.items()}
            watches[experts] = partial(_add, chosen)
    examples = 0
    if found:
        with watched_experts(model, watches):
            for number, batch in enumerate(batches):
                BatchLoss().forward(model, batch, number)
                examples += count_examples(batch)
    return {name: squares.scores(examples) for name, squares in found.items()}


class _Squares:
    """The sums of the squares of the inputs of one weight, for each expert."""

    def __init__(self, experts: nn.Module, name: str) -> None:
        self.weight: Tensor = getattr(experts, name).detach()
        self.inputs = 1 if getattr(experts, "is_transposed", False) else 2  # the dimension of the inputs
        self.sums: dict[int, Tensor] = {}

    def scores(self, examples: int) -> Tensor:
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        norms = torch.zeros(len(self.weight), self.weight.shape[self.inputs], dtype=dtype, device=self.weight.device)
        for expert, squares in self.sums.items():
            norms[expert] = (squares / examples).sqrt()
        reached = norms[list(self.sums)]
        norms.clamp_min_(1e-6 * float(reached.mean()) if self.sums else 1.0)
        return self.weight.to(dtype).abs() * norms.unsqueeze(3 - self.inputs)


def _add(parts: dict[str, _Squares], name: str, expert: int, x: Tensor) -> None:
    if (part := parts.get(name)) is not None:
        squares = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(0)
        part.sums[expert] = part.sums[expert] + squares if expert in part.sums else squares
