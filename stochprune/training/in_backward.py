"""step_in_backward: each parameter makes its optimiser step inside backward, so gradients do not live together."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakTensorKeyDictionary

from stochprune.arguments import checked

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
"""A function from parameter groups to an optimiser: a class of torch.optim, or a ``functools.partial`` of one."""

_HOOKS = WeakTensorKeyDictionary()  # the hook of each parameter that steps inside backward
_NOT_SETTINGS = ("params", "param_names")


@checked
def step_in_backward(params: ParamsT, make_optimizer: MakeOptimizer) -> StepInBackward:
    """Return an optimiser that steps each parameter as soon as backward has its gradient, and then frees the gradient.

    The memory of the gradients is that of one layer instead of the whole model (Lv et al. 2023, arXiv 2306.09782). The
    loop stays as it is, and the result is that of ``make_optimizer(params)``, bit for bit::

        optimizer = step_in_backward(sp.parameter_groups(model, lr=1e-3), torch.optim.AdamW)
        for x, y in loader:
            optimizer.zero_grad()
            loss_fn(model(x), y).backward()  # every parameter makes its step here
            optimizer.step()  # ends the step
            budget.step()

    Learning-rate schedulers and hooks of the optimiser work. The state loads into ``make_optimizer(params)``, and from
    it. A tied parameter makes one step, with the sum of its gradients. Activation checkpointing works, with
    ``use_reentrant=True`` too unless a parameter is shared by checkpointed parts. Inside
    :func:`stochprune.nn.fused_masking` the steps are right, but nothing is saved: one launch computes all gradients.

    FSDP2 averages each gradient over processes before the parameter's step. Four things need all gradients at once and
    are impossible: accumulation over several backward passes, clipping by the norm of all gradients, a gradient scaler
    (fp16), and averaging over processes by DDP. ``clip_grad_norm_`` finds
    no gradients and returns 0; the trainers refuse such settings.

    Args:
        params: parameters or groups, as for every optimiser of torch. A parameter steps with the last optimiser that
            was made for it here. If this optimiser is deleted, its parameters have ordinary gradients again.
        make_optimizer: a function of parameter groups. It is called once for each parameter, with one group.

    Raises:
        TypeError: ``params`` is a module, or ``make_optimizer`` returns no optimiser.
        ValueError: parameters that are not sharded, in several processes: their gradients are not averaged yet.
        RuntimeError: in backward, a second gradient of a parameter before ``step()`` or ``zero_grad()``.
    """
    if isinstance(params, nn.Module):
        raise TypeError(
            f"step_in_backward: params must be parameters or groups, got the module {type(params).__name__}; give "
            "stochprune.parameter_groups(model, lr=...) or model.parameters()"
        )
    return StepInBackward(params, make_optimizer)


class StepInBackward(Optimizer):
    """The optimiser that :func:`step_in_backward` returns: one small optimiser for each parameter.

    Attributes:
        param_groups: as of every optimiser; a step reads its settings here.
    """

    def __init__(self, params: ParamsT, make_optimizer: MakeOptimizer) -> None:
        self._make = make_optimizer
        self._optimizers: dict[Tensor, Optimizer] = {}
        self._groups: dict[Tensor, int] = {}  # the numbers of their groups
        self._hooks: dict[Tensor, RemovableHandle] = {}
        self._stepped: set[Tensor] = set()  # parameters that have made the present step
        self._pre_hooks: OrderedDict[int, Callable[..., object]] = OrderedDict()  # a handle needs an OrderedDict
        super().__init__(params, {})
        self.defaults = next(iter(self._optimizers.values())).defaults  # schedulers look at them

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for parameter in group["params"]:
            _check_sharded(parameter)
            made = self._make([{**_settings(group), "params": [parameter]}])
            if not isinstance(made, Optimizer):
                raise TypeError(
                    f"step_in_backward: make_optimizer must return a torch.optim.Optimizer, got {type(made).__name__}"
                )
            self._optimizers[parameter], self._groups[parameter] = made, len(self.param_groups) - 1
            self._hook(parameter)
        group.update(_settings(made.param_groups[0]))  # the defaults of the optimiser too, for schedulers

    def _hook(self, parameter: Tensor) -> None:
        """Step this parameter when its gradient is there, as long as this optimiser lives."""
        this = weakref.ref(self)

        def step(parameter: Tensor) -> None:
            if (optimizer := this()) is not None:
                optimizer._step_early(parameter)

        if parameter in _HOOKS:
            _HOOKS[parameter].remove()
        _HOOKS[parameter] = self._hooks[parameter] = parameter.register_post_accumulate_grad_hook(step)

    def _step_early(self, parameter: Tensor) -> None:
        if parameter in self._stepped:
            raise RuntimeError(
                f"step_in_backward: a parameter {tuple(parameter.shape)} got a second gradient before step(). "
                "Gradients cannot be accumulated, because each makes a step: use larger batches, or an ordinary "
                "optimiser"
            )
        if not self._stepped:
            for hook in self._pre_hooks.values():
                hook(self, (), {})
        self._step_one(parameter)

    @torch.no_grad()
    def _step_one(self, parameter: Tensor) -> None:
        optimizer = self._optimizers[parameter]
        optimizer.param_groups[0].update(_settings(self.param_groups[self._groups[parameter]]))
        optimizer.step()
        parameter.grad = None
        self._stepped.add(parameter)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """End the step. Parameters whose gradient did not come from backward make theirs now.

        Args:
            closure: computes the loss and the gradients, and returns the loss.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        for parameter in self._optimizers:
            if parameter.grad is not None:
                self._step_one(parameter)
        self._stepped.clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop gradients that are there, and begin a new step."""
        super().zero_grad(set_to_none)
        self._stepped.clear()

    def register_step_pre_hook(self, hook: Callable[..., object]) -> RemovableHandle:
        """Register a hook that runs before the first parameter changes, which is inside backward."""
        handle = RemovableHandle(self._pre_hooks)
        self._pre_hooks[handle.id] = hook
        return handle

    def remove(self) -> None:
        """Give the parameters ordinary gradients again; this optimiser then steps in ``step()``, as others do."""
        for hook in self._hooks.values():
            hook.remove()

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the form of an optimiser of all parameters."""
        packed = super().state_dict()
        states = [optimizer.state_dict()["state"] for optimizer in self._optimizers.values()]
        packed["state"] = {number: state[0] for number, state in enumerate(states) if state}
        return packed

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimiser, or of an ordinary one of the same parameters.

        Raises:
            ValueError: the groups differ from those of this optimiser.
        """
        super().load_state_dict({**state_dict, "state": {}})  # checks the groups, and loads their settings
        states = state_dict["state"]
        numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for number, (parameter, optimizer) in zip(numbers, self._optimizers.items(), strict=True):
            state = {0: states[number]} if number in states else {}
            group = {**_settings(self.param_groups[self._groups[parameter]]), "params": [0]}
            # The optimiser itself loads its part, because optimisers of quantised state have rules of their own.
            optimizer.load_state_dict({"state": state, "param_groups": [group]})

    def __reduce__(self) -> tuple[Any, ...]:
        """Make copies, and what is pickled, step inside the backward pass of the copied parameters."""
        return _remade, (self.param_groups, self._make, self.state_dict())


def _remade(groups: list[dict[str, Any]], make: MakeOptimizer, state: dict[str, Any]) -> StepInBackward:
    made = StepInBackward(groups, make)
    made.load_state_dict(state)
    return made


def check_in_backward(what: str, optimizer: Optimizer, *, accumulate: int, clip_norm: float | None, fp16: bool) -> None:
    """Refuse settings of a trainer, called ``what``, that an optimiser which steps inside backward cannot have.

    Raises:
        ValueError: accumulation, clipping or a gradient scaler.
    """
    optimizer = getattr(optimizer, "optimizer", optimizer)  # accelerate and Lightning wrap it
    if not isinstance(optimizer, StepInBackward):
        return
    for name, value, off in (
        ("accumulation of gradients", accumulate, 1),
        ("clipping by the norm of all gradients", clip_norm or 0, 0),
        ("precision fp16", fp16, False),
    ):
        if value != off:
            raise ValueError(
                f"{what}: {name} is {value}, but with step_in_backward gradients do not live together: set it to "
                f"{off}, or use an ordinary optimiser"
            )


def _check_sharded(parameter: Tensor) -> None:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return
    from torch.distributed.tensor import DTensor  # a slow import

    if not isinstance(parameter, DTensor):
        raise ValueError(
            f"step_in_backward: a parameter {tuple(parameter.shape)} is a copy in each of {dist.get_world_size()} "
            "processes, and would step before the gradients are averaged; shard the model (FSDP2), or use an ordinary "
            "optimiser"
        )


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name not in _NOT_SETTINGS}
