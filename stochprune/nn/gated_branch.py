"""Gates on the branches of a network: a branch, such as that of a residual block, is kept or dropped whole."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.nn.masked_linear import MaskedLinear


class GatedBranch(nn.Module):
    """``z branch(x)`` with one z in {0, 1} a forward, drawn like any mask: one logit, at row 0, column 0 of a stream.

    The gate is a :class:`MaskedLinear` of one weight, fixed at 1. So it has the draws, the estimators, the
    evaluation mode and the state of masked layers, and :func:`stochprune.finetune` trains its logit. At the end
    :func:`drop_branches` comes before :func:`stochprune.harden`, to which a closed gate is a layer left empty. Put
    it around what a residual block adds to its shortcut; dropping the whole branch for a batch is stochastic depth
    (Huang et al. 2016, arXiv 1603.09382), here with trained probabilities, after Guenter and Sideris, "Concurrent
    training and layer pruning of deep neural networks" (arXiv 2406.04549).

    Args:
        branch: the module; its output is a floating tensor.
        keep: the initial probability of keeping it, in (0, 1).
        options: ``estimator``, ``temperature``, ``seed`` and ``stream`` of the gate.
    """

    def __init__(self, branch: nn.Module, keep: float = 0.9, **options: Any) -> None:
        super().__init__()
        if not isinstance(branch, nn.Module):
            raise TypeError(f"GatedBranch: branch must be a torch.nn.Module, got {type(branch).__name__}")
        device = next((tensor.device for tensor in branch.parameters()), None)
        one = nn.utils.skip_init(nn.Linear, 1, 1, bias=False, device=device or "cpu")
        nn.init.ones_(one.weight).requires_grad_(False)
        self.branch, self.gate = branch, MaskedLinear.from_linear(one, keep, **options)
        self.train(branch.training)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = self.branch(*args, **kwargs)
        weight = self.gate.weight
        # Inside batched_samples each part of the batch has a gate of its own.
        many = self.gate.draws_per_forward > 1
        ones = torch.ones(len(output) if many else 1, 1, dtype=weight.dtype, device=weight.device)
        gate = self.gate(ones).reshape([-1, *[1] * (output.dim() - 1)] if many else [])
        return gate.to(output.dtype) * output


class Dropped(nn.Module):
    """The rest of a dropped branch: 0, which any tensor can be added to.

    Args:
        like_input: give zeros like the input, to which a shortcut can be added in place. Known of normalisation layers,
            whose outputs have the shape of their inputs; of other branches a 0 without dimensions.
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
    """Put a gate around modules of a model, in place; the streams come from the names.

    Args:
        names: shell patterns on the modules' qualified names, such as ``"layer*.bn2"`` for the end of each branch of
            :func:`stochprune.models.resnet20`. Of modules one inside the other the outer one gets the gate.
        keep, seed, options: as for :class:`GatedBranch`.
        name: of the model, as for :func:`stochprune.convert`.

    Returns:
        The model.

    Raises:
        TypeError: an argument of another type.
        ValueError: a pattern that fits no module, a probability outside (0, 1).
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
    prefix = f"{name}." if name else ""
    streams = rng.streams(f"{prefix}{branch}.gate.weight" for branch in chosen)
    for branch in chosen:
        stream = streams[f"{prefix}{branch}.gate.weight"]
        _set(model, branch, GatedBranch(model.get_submodule(branch), keep, seed=seed, stream=stream, **options))
    return model


def gated_branches(model: nn.Module) -> dict[str, GatedBranch]:
    """The gated branches of a model by qualified name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, GatedBranch)}


def drop_branches(model: nn.Module) -> list[str]:
    """Remove the gates, in place: branches kept with probability one half or more stay, the others go.

    A dropped branch becomes :class:`Dropped`, so its parameters and its computation are gone. Add it to its shortcut
    out of place (``x + branch(x)``), unless the branch is a normalisation layer.

    Returns:
        The names of the branches dropped.

    Raises:
        ValueError: the model has no gated branch, or is one itself.
    """
    branches = _branches_of("drop_branches", model)
    if "" in branches:
        raise ValueError("drop_branches: the model is a gated branch itself: put it into another module")
    dropped = [name for name, branch in branches.items() if not bool(branch.gate.gate().reshape(()) > 0)]
    for name, branch in branches.items():
        left = Dropped(isinstance(branch.branch, _LIKE_INPUT)) if name in dropped else branch.branch
        _set(model, name, left)
    return dropped


def expected_cost(model: nn.Module, costs: Mapping[str, float] | None = None) -> Tensor:
    """``sum(q cost) / sum(cost)`` over the gated branches, differentiable in the logits: a scalar in [0, 1].

    Add ``price * expected_cost(model)`` to the loss to train a network and prune its layers at once; the price stands
    where Guenter and Sideris have a hyper-prior.

    Args:
        costs: of each branch by name, positive; default: its number of parameters, at least 1.

    Raises:
        ValueError: no gated branch, costs of other branches, or one that is not positive.
    """
    branches = _branches_of("expected_cost", model)
    if costs is None:
        costs = {n: max(1, sum(p.numel() for p in b.branch.parameters())) for n, b in branches.items()}
    if not isinstance(costs, Mapping):
        raise TypeError(f"expected_cost: costs must be a dictionary by branch name, got {type(costs).__name__}")
    if set(costs) != set(branches) or not all(0 < cost < math.inf for cost in costs.values()):
        raise ValueError(f"expected_cost: costs must be positive and of {', '.join(branches)}, got {dict(costs)}")
    expected = [costs[name] * torch.sigmoid(branch.gate.mask_logits).reshape(()) for name, branch in branches.items()]
    return torch.stack(expected).sum() / sum(costs.values())


def _check_module(op: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{op}: model must be a torch.nn.Module, got {type(model).__name__}")


def _branches_of(op: str, model: nn.Module) -> dict[str, GatedBranch]:
    """The gated branches of a model, at least one, for the function ``op``."""
    _check_module(op, model)
    branches = gated_branches(model)
    if not branches:
        raise ValueError(f"{op}: {type(model).__name__} has no gated branch: gate_branches makes them")
    return branches


def _set(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
