"""MaskedAdamW: AdamW in one launch, which also keeps the thresholds of mask logits up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adamw import adamw
from torch.optim.optimizer import ParamsT

from stochprune import backends
from stochprune.arguments import checked
from stochprune.memory_format import channels_last, in_format_of
from stochprune.training.groups import LOGITS

DTYPES = (torch.float32, torch.bfloat16)
"""The dtypes of the kernel. It computes in float32 and rounds once; the moments have the parameter's dtype."""


class MaskedAdamW(Optimizer):
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), made for masked models on a GPU.

    A step on a GPU with Triton is one launch for each group, dtype and alignment. It reads the gradients and reads and
    writes parameters and moments, 28 bytes for each float32 weight. For the logits it also writes packed thresholds, 2
    bytes for each weight, which masked layers read instead of the logits until the next step::

        optimizer = sp.MaskedAdamW(sp.parameter_groups(model, lr=1e-3, logit_lr=0.1))

    Everywhere else, and for parameters of another dtype or of a subclass of Tensor, the step is
    :class:`torch.optim.AdamW`'s own, bit for bit; on a GPU with ``capturable=True``. The states of both have the same
    names and load into each other.

    Thresholds are written for contiguous logits with at least two dimensions in the group with the name ``"logits"``.
    They are of use for hard masks only, and as long as nothing else changes the logits: with other estimators, or with
    a budget of the kind ``shift``, pass ``thresholds=False``.

    A CUDA graph can capture a step, after one step without a graph. The number of the step is then on the device, and
    so is a learning rate that is a tensor; a learning rate that is a number stays in the graph as it was. Between two
    replays nothing else may change the logits, because the graph reads the thresholds of its last step.

    Args:
        params: parameters or groups, as for every optimiser of torch.
        lr: the learning rate, a number or a tensor with one element.
        betas: the decay rates of both moments.
        eps: is added to the root of the second moment.
        weight_decay: the decay of a step is ``lr * weight_decay``.
        thresholds: write the thresholds of the logits. A group may have its own value, as of all arguments.

    Raises:
        TypeError: an argument of another type.
        ValueError: a value outside its range.
    """

    @checked
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        thresholds: bool = True,
    ) -> None:
        given = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "thresholds": thresholds}
        self._thresholds: dict[Tensor, Tensor] = {}
        super().__init__(params, given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every optimiser of torch does.

        Raises:
            ValueError: a value of the group is outside its range.
        """
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_thresholds", {})
        for group in self.param_groups:  # a state of torch.optim.AdamW has no such key
            group.setdefault("thresholds", self.defaults["thresholds"])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make a step with the gradients of all parameters that have one.

        Args:
            closure: computes the loss and the gradients, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            fused: dict[tuple[Any, torch.device], list[Tensor]] = {}  # by the module of the kernel
            others: dict[bool, list[Tensor]] = {}  # by whether a graph may capture them
            for p in group["params"]:
                if p.grad is not None:
                    self._prepare(p)
                    if (adam := _kernel(p)) is not None:
                        fused.setdefault((adam, p.device), []).append(p)
                    else:
                        others.setdefault(p.is_cuda, []).append(p)
            for (adam, _), params in fused.items():
                self._fused(adam, params, group)
            for capturable, params in others.items():
                self._unfused(params, group, capturable)
        return loss

    def _prepare(self, p: Tensor) -> None:
        """Form the state of a parameter, or convert one that was loaded."""
        if p.grad is not None and p.grad.is_sparse:
            raise RuntimeError("MaskedAdamW: a gradient is sparse; give this parameter to torch.optim.SparseAdam")
        state, device = self.state[p], p.device if p.is_cuda else torch.device("cpu")
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = torch.zeros_like(p, memory_format=torch.preserve_format)
        state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=device)

    def _unfused(self, params: list[Tensor], group: dict[str, Any], capturable: bool) -> None:
        """Make torch's step for parameters of one group."""
        states = [self.state[p] for p in params]
        adamw(
            params,
            [p.grad for p in params if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            capturable=capturable,
            has_complex=any(p.is_complex() for p in params),
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def _fused(self, adam: Any, params: list[Tensor], group: dict[str, Any]) -> None:
        """Make the kernel's step for parameters of one group on one device."""
        given = []
        for p in params:
            assert p.grad is not None
            state = self.state[p]
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = in_format_of(p, state[name])
            levels = self._levels(adam, p) if _has_thresholds(p, group) else None
            given.append(adam.Parameter(p, in_format_of(p, p.grad), **state, thresholds=levels))
        lr = group["lr"]
        if isinstance(lr, Tensor) and lr.device != params[0].device:
            lr = float(lr)
        torch._foreach_add_([each.step for each in given], 1)
        adam.adamw(given, lr=lr, betas=group["betas"], eps=group["eps"], weight_decay=group["weight_decay"])

    def _levels(self, adam: Any, logits: Tensor) -> Tensor:
        """Return the memory of the thresholds, which is the same at each step, since a CUDA graph has its address."""
        levels = self._thresholds.get(logits)
        if levels is None or levels.device != logits.device:
            levels = self._thresholds[logits] = adam.empty_thresholds(logits)
        return levels


def _has_thresholds(p: Tensor, group: dict[str, Any]) -> bool:
    return group["thresholds"] and group.get("name") == LOGITS and p.dim() >= 2 and p.is_contiguous()


def _kernel(p: Tensor) -> Any:
    """Return the fused step of the backend that serves a parameter; None if torch's step serves it."""
    grad = p.grad
    plain = type(p) in (Tensor, nn.Parameter) and grad is not None and grad.dtype == p.dtype in DTYPES
    if not plain or not (p.is_contiguous() or channels_last(p)):
        return None
    return getattr(backends.resolve(p), "adam", None)  # of the Triton backend only


def _check(group: dict[str, Any]) -> None:
    """Check the numbers of a group."""
    beta1, beta2 = group["betas"]
    at_least_0 = {name: group[name] for name in ("lr", "eps", "weight_decay")}
    for name, value in at_least_0.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"MaskedAdamW: {name} must be at least 0 and finite, got {value}")
    for name, value in (("betas[0]", beta1), ("betas[1]", beta2)):
        if not 0 <= value < 1:
            raise ValueError(f"MaskedAdamW: {name} must be at least 0 and below 1, got {value}")
