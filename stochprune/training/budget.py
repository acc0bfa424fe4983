"""Budget: holds the expected number of kept weights, sum(q), in the trainers and in loops of one's own.

Without a budget all q drift to 1 when the expected loss of a trainable network is minimised, because random pruning
only increases the loss. There are three kinds:

``shift``    adds one number to all logits after each step, so that sum(q) equals the budget. It is exact, needs no
             strength, and lets the probability of one weight grow at the expense of others.
``penalty``  adds strength * (sum(q) / budget - 1)^2 to the loss.
``kl``       adds strength * KL(q || q at the start), in nats summed over weights, to the loss. It holds the
             probability of each weight, not only their sum.

``shift`` is the default, because there is nothing to tune. Error in per cent after pruning and retraining, on held-out
digits (LeNet-300-100; magnitude 95%, SNIP 98%, random 95%, random 98%; mean of 4 seeds): shift 2.3, 5.0, 3.7, 6.6;
penalty of strength 100 2.5, 4.7, 3.5, 4.7, of strength 1000 2.9, 4.7, 4.5, 30.1. So a penalty can be as good once its
strength is tuned. A KL of strength 1e-3 (2 seeds: 18.0, 14.5, 9.6, 60.7) kept weights from changing that should
change, and still let the sum drift by 8%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from stochprune import functional
from stochprune.arguments import checked
from stochprune.masks.probabilities import expected_kept
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.members import layers_of, once
from stochprune.training.constraint import Constraint
from stochprune.training.flips import Flips, packed
from stochprune.training.groups import LOGITS
from stochprune.training.schedules import cubic
from stochprune.training.shift import add_shift, solve_shift
from stochprune.training.state import State

Kind = Literal["shift", "penalty", "kl", "none"]
Schedule = Literal["constant", "cubic"]
Scope = Literal["global", "layer"]
STRENGTHS = {"penalty": 100.0, "kl": 1e-4}


class Budget(Constraint):
    """Holds the expected sparsity of a model's masks while you train it in a loop of your own::

        optimizer = torch.optim.AdamW(sp.parameter_groups(model, lr=1e-3))
        budget = sp.Budget(model, 0.9, schedule="cubic", steps=2000)
        for epoch in range(epochs):
            for x, y in loader:
                loss = loss_fn(model(x), y) + budget.penalty()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                budget.step()
            print(budget.end_epoch())

    The expected sparsity is 1 minus the mean of q over all logits; layers with one logit for a block or a filter count
    blocks and filters. Logits that require no gradient when the budget is made do not change and do not count. Under
    gradient accumulation divide the penalty like the loss, and call :meth:`step` once for each step of the optimiser.

    The shift of bfloat16 logits is computed in float32 and rounded stochastically, with bits from the seed and stream
    of the layer and the number of the step. So sum(q) is the budget on average; 6,000 logits hold it within 0.1 %.
    Let :class:`stochprune.training.StochasticRounding` make the optimiser's steps of such logits.

    Args:
        model: a model from :func:`stochprune.convert`.
        sparsity: the expected sparsity to hold, in [0, 1). Default: the one that the model has now.
        kind: ``shift``, ``penalty``, ``kl`` (see the top of this file), or ``none``, which only measures.
        strength: of a penalty (default 100: loss per squared relative deviation) or of the KL (default 1e-4: loss per
            nat).
        schedule: ``constant`` holds ``sparsity`` from the first step on. ``cubic`` goes there from the present
            sparsity s: ``sparsity + (s - sparsity)(1 - progress)^3`` (Zhu and Gupta 2017, arXiv 1710.01878, equation
            1), from dense to the target if the model was converted without masks.
        steps, begin: the length of the cubic in optimiser steps, and the step at which it starts.
        scope: ``global`` holds the sum over all layers; ``layer`` holds the sum of each layer, for a cut that prunes
            each layer to the same sparsity.

    Attributes:
        made: the number of steps made.

    Raises:
        TypeError: an argument of another type.
        ValueError: no masked layer, or none whose logits require gradients; a value outside its range; a sparsity of
            budget kl or none; logits in float16 of budget shift.
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        sparsity: float | None = None,
        *,
        kind: Kind = "shift",
        strength: float | None = None,
        schedule: Schedule = "constant",
        steps: int = 0,
        begin: int = 0,
        scope: Scope = "global",
    ) -> None:
        self.layers = _trainable_layers(model)
        self.kind, self.sparsity, self.schedule, self.steps, self.begin = kind, sparsity, schedule, steps, begin
        self.scope, self.made = scope, 0
        self._check(strength)
        self.strength = STRENGTHS.get(kind, 0.0) if strength is None else strength
        self.count = sum(tensor.numel() for tensor in self.logits)
        self._targets = [expected_kept(part).item() for part in self._parts]
        self._first = [1 - kept / _count(part) for kept, part in zip(self._targets, self._parts, strict=True)]
        self._prior = [tensor.detach().clone() for tensor in self.logits] if kind == "kl" else []
        self.flips = Flips(self.layers)
        if sparsity is not None:
            self._follow()

    def _check(self, strength: float | None) -> None:
        for name, kinds in (("kind", Kind), ("schedule", Schedule), ("scope", Scope)):
            if getattr(self, name) not in get_args(kinds):
                raise ValueError(
                    f"Budget: {name} must be one of {', '.join(get_args(kinds))}, got {getattr(self, name)!r}"
                )
        if self.sparsity is not None:
            if not 0 <= self.sparsity < 1:
                raise ValueError(f"Budget: sparsity must lie in [0, 1), got {self.sparsity}")
            if self.kind not in ("shift", "penalty"):
                raise ValueError(
                    f"Budget: kind {self.kind} holds no sparsity, got {self.sparsity}; choose shift or penalty"
                )
        if strength is not None and (self.kind not in STRENGTHS or not 0 <= strength < math.inf):
            raise ValueError(f"Budget: strength is a number >= 0 of kind penalty or kl, got {strength} of {self.kind}")
        if self.schedule == "cubic" and (self.sparsity is None or self.steps < 1):
            raise ValueError(
                f"Budget: schedule cubic needs sparsity and steps >= 1, got {self.sparsity} and {self.steps}"
            )
        if not 0 <= self.begin < 1 << 63:
            raise ValueError(f"Budget: begin must lie in 0 .. 2^63 - 1, got {self.begin}")
        for tensor in self.logits if self.kind == "shift" else []:
            if tensor.dtype not in (torch.float32, torch.float64, torch.bfloat16):
                raise ValueError(
                    f"Budget: kind shift needs mask logits in float32, float64 or bfloat16, got {tensor.dtype}: "
                    "a small shift is lost in rounding. Keep the logits in float32, or choose budget penalty"
                )

    @property
    def logits(self) -> list[Tensor]:
        """The logits that count, each tensor once."""
        return [layer.mask_logits for layer in self.layers]

    @property
    def target(self) -> float:
        """The present budget, the wanted sum of q."""
        return sum(self._targets)

    @property
    def _parts(self) -> list[list[Tensor]]:
        """The logits by the sums that are held."""
        return [self.logits] if self.scope == "global" else [[tensor] for tensor in self.logits]

    def kept(self) -> float:
        """Return the present sum(q)."""
        return expected_kept(self.logits).item()

    def aim(self, sparsity: float) -> None:
        """Hold another expected sparsity from now on, in each layer if the scope is ``layer``."""
        self._targets = [_target(sparsity, part) for part in self._parts]

    def sparsity_at(self, step: int) -> float:
        """Return the expected sparsity to hold after ``step`` steps, over all layers."""
        each = zip(self._first, self._parts, strict=True)
        return self._at(step, sum(first * _count(part) for first, part in each) / self.count)

    def _at(self, step: int, first: float) -> float:
        last = first if self.sparsity is None else self.sparsity
        if self.schedule == "constant":
            return last
        return cubic(first, last, min(max((step - self.begin) / self.steps, 0.0), 1.0))

    def _follow(self) -> None:
        """Set the budget to that of the steps made."""
        each = zip(self._first, self._parts, strict=True)
        self._targets = [_target(self._at(self.made, first), part) for first, part in each]

    def penalty(self) -> Tensor | float:
        """Return the term to add to the loss, a float64 scalar; 0.0 for kinds shift and none."""
        if self.kind == "penalty":
            each = zip(self._parts, self._targets, strict=True)
            errors = [expected_kept(part) / target - 1 for part, target in each]
            device = self.logits[0].device
            return self.strength * torch.stack([error.to(device) for error in errors]).square().mean()
        if self.kind == "kl":
            pairs = zip(self.logits, self._prior, strict=True)
            device = self.logits[0].device
            terms = [functional.bernoulli_kl(tensor, start.to(tensor.device)).to(device) for tensor, start in pairs]
            return self.strength * sum(terms, start=torch.zeros_like(terms[0]))
        return 0.0

    def step(self) -> None:
        """Follow the schedule and hold the budget; call it after each step of the optimiser."""
        self.made += 1
        if self.sparsity is not None:
            self._follow()
        self.hold()

    def after_step(self) -> None:
        self.step()

    @torch.no_grad()
    def hold(self) -> None:
        """Shift the logits so that sum(q) equals the budget (kind shift)."""
        if self.kind == "shift":
            layers = [self.layers] if self.scope == "global" else [[layer] for layer in self.layers]
            for part, target in zip(layers, self._targets, strict=True):
                shift = solve_shift([layer.mask_logits for layer in part], target)
                for layer in part:
                    add_shift(layer, shift, self.made)

    def end_epoch(self, epochs_left: int | None = None, logit_lr: float | None = None) -> dict[str, float]:
        """Return numbers for the history; call it after each epoch.

        Args:
            epochs_left: of the training, if it is known.
            logit_lr: the learning rate of the logits, for the warning.

        Returns:
            ``mean_keep`` (mean of q), ``flipped`` (weights whose q has crossed 1/2 since the start) and
            ``budget_error`` (sum(q) / budget - 1).

        Warns:
            StuckMaskWarning: once, if no weight has flipped and none will in the epochs left (if their number is not
                known, in ten) at the pace of this epoch. The message says how far the nearest logit has to go.
        """
        kept = self.kept()
        self.flips.end_epoch(epochs_left, logit_lr)
        return {
            "mean_keep": kept / self.count,
            "flipped": self.flips.count(),
            "budget_error": kept / self.target - 1,
        }

    def measure(self, state: State) -> dict[str, float]:
        rates = [group["lr"] for group in state.optimizer.param_groups if group.get("name") == LOGITS]
        return self.end_epoch(state.epochs - state.epoch - 1, float(rates[0]) if rates else None)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed training needs besides the model: numbers and tensors."""
        return {
            "made": self.made,
            "target": self._targets,
            "first_sparsity": self._first,
            "prior": self._prior,
            "kept_at_start": self.flips.kept,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: a key is missing, or the state is that of another model or kind.
        """
        if missing := self.state_dict().keys() - state.keys():
            raise ValueError(f"Budget.load_state_dict: the state lacks {', '.join(sorted(missing))}")
        kept = [packed(tensor) for tensor in state["kept_at_start"]]  # bools in states of earlier versions
        for name, given, own in (
            ("kept_at_start", kept, self.flips.kept),
            ("prior", state["prior"], self._prior),
        ):
            shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (given, own)]
            if shapes[0] != shapes[1]:
                raise ValueError(f"Budget.load_state_dict: {name} must have shapes {shapes[1]}, got {shapes[0]}")
        # A state made before budgets had a scope has numbers in the place of lists.
        found = (state[name] for name in ("target", "first_sparsity"))
        targets, first = ([number] if isinstance(number, float) else [*number] for number in found)
        if not len(targets) == len(first) == len(self._targets):
            raise ValueError(
                f"Budget.load_state_dict: target must hold {len(self._targets)} numbers, got {len(targets)}: the state "
                "is that of a budget with another scope"
            )
        self.made, self._targets, self._first = int(state["made"]), targets, first
        self._prior, self.flips.kept = [*state["prior"]], kept


def _count(part: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in part)


def _target(sparsity: float, part: Sequence[Tensor]) -> float:
    """Return the sum of q at an expected sparsity; a shift cannot reach a sparsity of exactly 0."""
    return min((1 - sparsity) * _count(part), _count(part) * (1 - 2.0**-20))


def _trainable_layers(model: nn.Module) -> list[MaskedLayer]:
    """Return the masked layers whose logits require gradients, one for each tensor of logits."""
    found = [layer for layer in once(layers_of("Budget", model)).values() if layer.mask_logits.requires_grad]
    if not found:
        raise ValueError("Budget: the mask_logits of at least one layer must require gradients, none of them does")
    return found
