"""Mixtures of experts: transformers keeps all experts of a layer in one parameter [E, N, K], and so in no layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochprune.extras import extra
from stochprune.integrations.transformers.config import METHOD
from stochprune.integrations.transformers.expert_masks import ExpertWeightMask, WholeExpertMask, expert_mask
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import MaskedModule, MaskedParameter
from stochprune.nn.registry import base_of, register
from stochprune.nn.unmasked import weights_read_past

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

ROUTERS = ("gate", "router", "shared_expert_gate")
DOWN = "down_proj"
PRODUCTS = ("FalconLinear",)
"""Subclasses of nn.Linear whose own forward computes the same."""


class MaskedExperts(MaskedModule):
    """Base of the masked experts; the type of a model's experts is the other base.

    With ``experts_implementation="stochprune"``, which masked models have, each expert that a token reaches runs by
    itself, as a shard of the layer's mask, and no masked weight is formed. With another implementation, and in
    evaluation mode, the masked weights of all experts exist until backward.
    """

    config: Any

    @classmethod
    def pattern_options(cls, pattern: str) -> dict[str, Any] | None:
        return {"pattern": pattern} if has_hook(cls.dense_type) and (":" in pattern or pattern == "experts") else None

    def _new_mask(
        self, name: str, keep: float | Tensor, *, pattern: str | None = None, **options: Any
    ) -> MaskedParameter:
        kind, own = expert_mask(pattern)
        if kind is WholeExpertMask and (name != DOWN or hasattr(self, f"{DOWN}_bias")):
            raise ValueError(f"pattern 'experts' needs {DOWN} without bias: the bias of a pruned expert would remain")
        return kind(self, name, keep, **own, **options)

    def runs_by_expert(self) -> bool:
        """Return True if the next forward pass samples masks expert by expert."""
        hooked = has_hook(self.dense_type) and self.config._experts_implementation == METHOD
        return hooked and all(mask.samples_now and mask.weight_override is None for mask in self.masks().values())

    def _masked_weights(self) -> dict[str, Tensor]:
        return {} if self.runs_by_expert() else super()._masked_weights()


def masked_experts_forward(experts: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Return the sum of the outputs of each token's experts, [T, H]; the experts may be masked or dense.

    Args:
        hidden_states: [T, H], one row for each token.
        top_k_index, top_k_weights: [T, k], the experts of each token and their weights. An index E is no expert.
    """
    if isinstance(experts, MaskedExperts) and experts.runs_by_expert():
        for mask in experts.masks().values():
            if isinstance(mask, WholeExpertMask):
                gates = F.pad(mask.sample_gates(), (0, 1), value=1.0).to(top_k_weights.dtype)
                top_k_weights = top_k_weights * gates[top_k_index]
    up = _products(experts, "gate_up_proj" if experts.has_gate else "up_proj")
    down = _products(experts, DOWN)
    result = torch.zeros_like(hidden_states)
    for expert in top_k_index.unique().tolist():
        if expert < experts.num_experts:
            token, choice = torch.where(top_k_index == expert)
            y = up(expert, hidden_states[token])
            y = experts._apply_gate(y) if experts.has_gate else experts.act_fn(y)
            y = down(expert, y)
            if experts.has_post_expert_norm:
                y = experts.post_expert_norm(y)
            result.index_add_(0, token, (y * top_k_weights[token, choice, None]).to(result.dtype))
    return result


ALL_EXPERTS_FUNCTIONS.register(METHOD, masked_experts_forward)

Watch = Callable[[str, int, Tensor], None]
_WATCHES: WeakKeyDictionary[nn.Module, Watch] = WeakKeyDictionary()


@contextlib.contextmanager
def watched_experts(model: PreTrainedModel, watches: Mapping[nn.Module, Watch]) -> Iterator[None]:
    """Call functions with the inputs of experts inside the block: the weight's name, the expert, and x [T, K].

    Args:
        model: its experts run by :func:`masked_experts_forward` inside the block.
        watches: by the module of the experts.
    """
    before = model.get_experts_implementation()
    model.set_experts_implementation(METHOD)
    _WATCHES.update(watches)
    try:
        yield
    finally:
        for module in watches:
            del _WATCHES[module]
        model.set_experts_implementation(before)


def _products(experts: Any, name: str) -> Callable[[int, Tensor], Tensor]:
    """Return the product of one expert with the weight called ``name``, as a function of the expert and of x [T, K]."""
    product, watch = _product(experts, name), _WATCHES.get(experts)
    if watch is None:
        return product

    def watched(expert: int, x: Tensor) -> Tensor:
        watch(name, expert, x)
        return product(expert, x)

    return watched


def _product(experts: Any, name: str) -> Callable[[int, Tensor], Tensor]:
    weights = getattr(experts, name).unbind(0)  # one gradient for all, where [e] would make one of E experts for each
    biases = getattr(experts, f"{name}_bias").unbind(0) if experts.has_bias else [None] * len(weights)
    mask = experts.masks().get(name) if isinstance(experts, MaskedExperts) and experts.runs_by_expert() else None
    if not isinstance(mask, ExpertWeightMask):
        return lambda e, x: F.linear(x, weights[e].mT if experts.is_transposed else weights[e], biases[e])
    at, logits = mask.address(), mask.mask_logits.unbind(0)
    return lambda e, x: mask.apply_expert(e, x, weights[e], logits[e], biases[e], at)


def has_hook(kind: type[nn.Module]) -> bool:
    """Return True if experts of this type can run by a function of ``ALL_EXPERTS_FUNCTIONS``."""
    return hasattr(kind, "_apply_gate")


def experts_of(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that hold all experts of a layer in parameters [E, N, K], by name."""
    return {name: module for name, module in model.named_modules() if _stacked_weights(module)}


def routers_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that choose the experts of a token, beside them in their layer."""
    parents = {name.rpartition(".")[0] for name in experts_of(model)}
    return tuple(f"{parent}.{name}" for parent in parents for name in ROUTERS)


def register_modules(model: PreTrainedModel) -> None:
    """Let :func:`stochprune.convert` mask experts, and modules that read the weights of their children themselves.

    The latter, such as the mixers of Mamba, would run past the masks of these children. Linear layers of
    :data:`PRODUCTS` are masked too.
    """
    for module in model.modules():
        kind = type(module)
        if kind.__name__ in PRODUCTS and kind.__module__.startswith("transformers.") and base_of(module) is not kind:
            register(kind, type(f"Masked{kind.__name__}", (MaskedLinear,), {"dense_type": kind}))
    for module in experts_of(model).values():
        _register(MaskedExperts, module, _stacked_weights(module))
    layers = {
        f"{name}.weight": layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv1d)
    }
    for name, weights in weights_read_past(model, layers).items():
        if not isinstance(module := model.get_submodule(name), PreTrainedModel):
            _register(MaskedModule, module, tuple(weights))


def _register(base: type[MaskedModule], module: nn.Module, weights: tuple[str, ...]) -> None:
    kind = type(module)
    if base_of(module) is not kind and not isinstance(module, MaskedModule):
        register(kind, type(f"Masked{kind.__name__}", (base, kind), {"dense_type": kind, "weights": weights}))


def _stacked_weights(module: nn.Module) -> tuple[str, ...]:
    if not (has_hook(type(module)) or "experts" in type(module).__name__.lower()):
        return ()
    parameters = module.named_parameters(recurse=False)
    return tuple(name for name, parameter in parameters if parameter.dim() == 3 and len(parameter) > 1)
