"""Gates on the branches of a network: a branch, such as that of a residual block, is kept or dropped as a whole."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.nn.convert import exchange
from stochprune.nn.masked_linear import MaskedLinear


class GatedBranch(nn.Module):
    """``z branch(x)`` with one mask z in {0, 1} for each forward pass.

    The gate is a :class:`MaskedLinear` with one weight, fixed at 1; its mask is at row 0 and column 0 of its stream.
    The gate therefore has the draws, the estimators, the evaluation mode and the state of masked layers, and
    :func:`stochprune.finetune` trains its logit. After training, call :func:`drop_branches` before
    :func:`stochprune.harden`, which refuses models with gates.

    Put the gate around the branch that a residual block adds to its shortcut. Dropping a whole branch for a batch is
    stochastic depth (Huang et al. 2016, arXiv 1603.09382). Here its probabilities are trained, after Guenter and
    Sideris, "Concurrent training and layer pruning of deep neural networks" (arXiv 2406.04549).

    Args:
        branch: the module; its output is a floating tensor.
        keep: the initial probability of keeping the branch, in (0, 1).
        options: ``estimator``, ``temperature``, ``seed`` and ``stream`` of the gate.

    Raises:
        TypeError: ``branch`` is not a module.
        ValueError: ``branch`` is itself a gated branch, or a value outside its range.
    """

    def __init__(self, branch: nn.Module, keep: float = 0.9, **options: Any) -> None:
        super().__init__()
        if not isinstance(branch, nn.Module):
            raise TypeError(f"GatedBranch: branch must be a torch.nn.Module, got {type(branch).__name__}")
        if isinstance(branch, GatedBranch):  # both gates would have one stream, so one mask
            raise ValueError("GatedBranch: branch must not be a GatedBranch: one gate decides about a branch")
        device = next((tensor.device for tensor in branch.parameters()), None)
        one = nn.utils.skip_init(nn.Linear, 1, 1, bias=False, device=device or "cpu")
        nn.init.ones_(one.weight).requires_grad_(False)
        self.branch, self.gate = branch, MaskedLinear.from_linear(one, keep, **options)
        self.train(branch.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.branch(*args, **kwargs)
        weight = self.gate.weight
        # Inside batched_samples, each part of the batch has its own gate.
        many = self.gate.draws_per_forward > 1
        ones = torch.ones(len(output) if many else 1, 1, dtype=weight.dtype, device=weight.device)
        gate = self.gate(ones).reshape([-1, *[1] * (output.dim() - 1)] if many else [])
        return gate.to(output.dtype) * output


class Dropped(nn.Module):
    """The replacement of a dropped branch: it returns 0, which can be added to any tensor.

    Args:
        like_input: return zeros of the input's shape, to which a shortcut can be added in place. This is used for
            normalisation layers, whose outputs have the shape of their inputs. Otherwise 0 has no dimensions.
    """

    def __init__(self, like_input: bool = False) -> None:
        super().__init__()
        self.like_input = like_input

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return torch.zeros_like(x) if self.like_input else x.new_zeros(())


_LIKE_INPUT = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def gate_branches(
    model: nn.Module, names: str | Sequence[str], keep: float = 0.9, *, seed: int = 0, name: str = "", **options: Any
) -> nn.Module:
    """Put a gate around modules of a model, in place; the streams are computed from the names.

    Args:
        names: shell patterns on the modules' qualified names, such as ``"layer*.bn2"`` for the end of each branch of
            :func:`stochprune.models.resnet20`. If one module contains another, only the
            outer one gets a gate.
        keep, seed, options: as for :class:`GatedBranch`.
        name: of the model, as for :func:`stochprune.convert`.

    Returns:
        The model.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern that fits no module, a branch that has a gate, a probability outside (0, 1).
    """
    _check_module("gate_branches", model)
    patterns = [names] if isinstance(names, str) else names
    if not isinstance(patterns, Sequence) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(
            f"gate_branches: names must be a pattern such as 'layer*.bn2', or a list of these, got {names!r}"
        )
    if not isinstance(name, str):
        raise TypeError(f"gate_branches: name must be a string, got {name!r}")
    known = [module for module, _ in model.named_modules() if module]
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(
                f"gate_branches: no module of {type(model).__name__} is called {pattern!r}; there are: "
                f"{', '.join(known)}"
            )
    fitting = [module for module in known if any(fnmatch.fnmatchcase(module, pattern) for pattern in patterns)]
    chosen = [module for module in fitting if not any(module.startswith(f"{other}.") for other in fitting)]
    gated = {part for each in gated_branches(model).values() for part in (each, each.branch, each.gate)}
    if twice := [branch for branch in chosen if model.get_submodule(branch) in gated]:
        raise ValueError(f"gate_branches: {twice[0]} has a gate already: leave it out")
    prefix = f"{name}." if name else ""
    streams = rng.streams(f"{prefix}{branch}.gate.weight" for branch in chosen)
    gates: dict[nn.Module, nn.Module] = {}
    for branch in chosen:
        module, stream = model.get_submodule(branch), streams[f"{prefix}{branch}.gate.weight"]
        gates[module] = GatedBranch(module, keep, seed=seed, stream=stream, **options)
    return exchange(model, gates, [*model.modules()])  # not inside the gates, which hold the branches


def gated_branches(model: nn.Module) -> dict[str, GatedBranch]:
    """Return the gated branches of a model by qualified name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GatedBranch)}


def drop_branches(model: nn.Module) -> list[str]:
    """Remove the gates, in place: keep branches with a probability of one half or more, and drop the others.

    :class:`Dropped` replaces a dropped branch, so its parameters and its computation are gone. Add the branch to its
    shortcut out of place (``x + branch(x)``), unless it is a normalisation layer.

    Returns:
        The names of the dropped branches.

    Raises:
        ValueError: the model has no gated branch, or is itself a gated branch.
    """
    branches = _branches_of("drop_branches", model)
    if "" in branches:
        raise ValueError("drop_branches: the model is a gated branch itself: put it into another module")
    dropped = [name for name, branch in branches.items() if not bool(branch.gate.gate().reshape(()) > 0)]
    left: dict[nn.Module, nn.Module] = {
        branch: Dropped(isinstance(branch.branch, _LIKE_INPUT)) if name in dropped else branch.branch
        for name, branch in branches.items()
    }
    exchange(model, left, [*model.modules()])
    return dropped


def expected_cost(model: nn.Module, costs: Mapping[str, float] | None = None) -> Tensor:
    """Return ``sum(q cost) / sum(cost)`` over the gated branches: a scalar in [0, 1], differentiable in the logits.

    Add ``price * expected_cost(model)`` to the loss to train a network and prune its layers at once. The price replaces
    the hyper-prior of Guenter and Sideris.

    Args:
        costs: the positive cost of each branch by name; default: its number of parameters, at least 1.

    Raises:
        ValueError: no gated branch, costs of other branches, or one that is not positive.
    """
    branches = _branches_of("expected_cost", model)
    if costs is None:
        costs = {n: max(1, sum(p.numel() for p in b.branch.parameters())) for n, b in branches.items()}
    if not isinstance(costs, Mapping):
        raise TypeError(f"expected_cost: costs must be a dictionary by branch name, got {type(costs).__name__}")
    positive = all(isinstance(cost, int | float) and 0 < cost < math.inf for cost in costs.values())
    if set(costs) != set(branches) or not positive:
        raise ValueError(f"expected_cost: costs must be positive and of {', '.join(branches)}, got {dict(costs)}")
    expected = [costs[name] * torch.sigmoid(branch.gate.mask_logits).reshape(()) for name, branch in branches.items()]
    return torch.stack(expected).sum() / sum(costs.values())


def _check_module(op: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")


def _branches_of(op: str, model: nn.Module) -> dict[str, GatedBranch]:
    """Return the gated branches of a model; ``op`` is the public function that error messages name."""
    _check_module(op, model)
    branches = gated_branches(model)
    if not branches:
        raise ValueError(f"{op}: {type(model).__name__} has no gated branch: gate_branches makes them")
    return branches
