"""StochasticRounding: any optimiser on bfloat16 parameters, whose steps in float32 are rounded up or down at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from stochprune import rng
from stochprune.arguments import checked
from stochprune.seeding import check_seed, derived_seed
from stochprune.shards import local_shard
from stochprune.training.store_rounded import store_rounded

DRAW = "rounding_draw"
"""The key in the state of a parameter: how many of its steps were rounded."""


class StochasticRounding(Optimizer):
    """An optimiser for bfloat16 parameters, such as mask logits: it rounds each step stochastically.

    bfloat16 has eight significant bits. Near the logit 2.94 of a keep probability of 0.95, its numbers are 1/64 apart,
    and rounding to the nearest one undoes every step below 1/128. Stochastic rounding keeps a step on average::

        groups = sp.parameter_groups(model, lr=1e-3)
        optimizer = sp.training.StochasticRounding(groups, torch.optim.AdamW, model=model, seed=0)

    The step of one parameter after the other is computed in float32, on a temporary copy of the parameter and its
    gradient: 8 bytes a weight of the largest parameter. The state of the optimiser has the dtype that it gives to
    float32 parameters. To save this memory too, take an optimiser whose state has 8 or 4 bits. Parameters of another
    dtype are changed as the optimiser itself changes them.

    The random bits are those of the mask contract at the address of each weight
    (:func:`stochprune.functional.stochastic_round`): the seed is derived from ``seed``, the draw is the number of the
    parameter's step, and the stream is that of its name. So a step is the same on every device, number of threads and
    shard, and after a resume. The bits are independent of those of all masks.

    Args:
        params: parameters or groups, as for every optimiser of torch.
        optimizer_class: any optimiser that treats each parameter alone (AdamW, Muon and others, of torchao too), or
            each weight alone if parameters are sharded. It gets ``**options``. ``MaskedAdamW`` needs
            ``thresholds=False``: those of temporary copies are of no use.
        model: has all parameters; their names are those of ``model.named_parameters()``. Use the same model, wrapped
            in the same way, in a resumed run.
        seed: 0 .. 2^64 - 1, the seed of the run.
        options: arguments of ``optimizer_class``, such as ``lr``.

    Raises:
        TypeError: an argument of another type.
        ValueError: a parameter that the model does not have, or a seed outside its range.
    """

    @checked
    def __init__(
        self,
        params: ParamsT,
        optimizer_class: Callable[..., Optimizer],
        *,
        model: nn.Module,
        seed: int = 0,
        **options: Any,
    ) -> None:
        check_seed(type(self).__name__, seed)
        names = {parameter: name for name, parameter in model.named_parameters()}
        by_name = rng.streams(names.values())
        self._streams: dict[Tensor, int] = {parameter: by_name[name] for parameter, name in names.items()}
        self._seed = derived_seed(seed, "stochastic rounding")
        self._inner: Optimizer | None = None
        self._wide: dict[Tensor, Tensor] = {}  # of each parameter, a float32 one that is empty between steps
        super().__init__(params, options)
        self._inner = optimizer_class([self._widened(group) for group in self.param_groups], **options)
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            _complete(group, inner)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as every optimiser of torch does.

        Raises:
            ValueError: a parameter that the model does not have.
        """
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            if p not in self._streams:
                shape = tuple(p.shape)
                raise ValueError(f"StochasticRounding: model has no parameter that is this one of params, {shape}")
            dtype = torch.float32 if p.dtype == torch.bfloat16 else p.dtype
            self._wide[p] = nn.Parameter(_emptied(p, dtype))
        if self._inner is not None:
            self._inner.add_param_group(self._widened(self.param_groups[-1]))
            _complete(self.param_groups[-1], self._inner.param_groups[-1])

    def _widened(self, group: dict[str, Any]) -> dict[str, Any]:
        return {**group, "params": [self._wide[p] for p in group["params"]]}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Make a step with every parameter that has a gradient; return the loss of ``closure``, which forms them."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        assert self._inner is not None
        for group, inner in zip(self.param_groups, self._inner.param_groups, strict=True):
            _follow(inner, group)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step_of(p, self._inner)
        return loss

    def _step_of(self, p: Tensor, inner: Optimizer) -> None:
        """Step with one parameter; all others of ``inner`` have no gradient, so it leaves them out."""
        wide = self._wide[p]
        assert p.grad is not None
        value, grad = local_shard(p.detach()), local_shard(p.grad)
        wide.data, wide.grad = value.tensor.to(wide.dtype), grad.tensor.to(wide.dtype)
        inner.step()
        state = self.state[p] = inner.state[wide]  # one dictionary, so that state_dict needs nothing else
        if p.dtype == torch.bfloat16:
            draw = state.get(DRAW, 0)
            store_rounded(wide.detach(), value, seed=self._seed, draw=draw, stream=self._streams[p])
            state[DRAW] = draw + 1
        torch.autograd.graph.increment_version(p)
        wide.data, wide.grad = _emptied(wide, wide.dtype), None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what :meth:`state_dict` returned. The moments stay in float32 though the parameters are narrower."""
        assert self._inner is not None
        groups = self._inner.param_groups
        own = [{key: value for key, value in group.items() if isinstance(value, Tensor)} for group in groups]
        self._inner.load_state_dict(state_dict)
        for group, inner, tensors in zip(self.param_groups, self._inner.param_groups, own, strict=True):
            group.update({key: value for key, value in inner.items() if key != "params"})
            inner.update(tensors)  # torchao's rate is a tensor, though that of the stored group is a number
            _follow(inner, group)
            for p, wide in zip(group["params"], inner["params"], strict=True):
                if wide in self._inner.state:
                    self.state[p] = self._inner.state[wide]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()


def _emptied(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor without elements of as many dimensions, which some optimisers check; one for a scalar."""
    return torch.empty(0, *tensor.shape[1:], dtype=dtype, device=tensor.device)


def _complete(group: dict[str, Any], inner: dict[str, Any]) -> None:
    """Add the optimiser's default values to a group, for schedules of the learning rate."""
    for key, value in inner.items():
        group.setdefault(key, value)


def _follow(inner: dict[str, Any], group: dict[str, Any]) -> None:
    """Give the optimiser the present values of a group; a tensor stays the same tensor."""
    for key, value in group.items():
        if key != "params":
            if isinstance(inner.get(key), Tensor):
                inner[key].fill_(value)
            else:
                inner[key] = value
