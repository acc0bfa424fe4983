"""parameter_groups: the parameters of a masked model for any optimiser of torch."""

from __future__ import annotations

from typing import Any

from torch import nn

from stochprune.arguments import checked
from stochprune.nn.members import layers_of
from stochprune.runs.config import POSITIVE

LOGITS, WEIGHTS = "logits", "weights"


@checked
def parameter_groups(
    model: nn.Module, lr: float, *, logit_lr: float = 0.1, weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the parameter groups of a masked model for any optimiser of torch.

    Mask logits need a learning rate of their own. A keep probability of 0.95 has the logit 2.9, so Adam at 1e-3 needs
    about 2,900 steps to move it to the other side of one half. Logits never decay, because decay would move every
    probability to one half::

        optimizer = torch.optim.AdamW(sp.parameter_groups(model, lr=1e-3, weight_decay=0.01))

    Args:
        model: a model from :func:`stochprune.convert`. Parameters that require no gradient are left out; a tied one is
            in its group once.
        lr: the learning rate of the weights, and of every parameter that is not a mask logit.
        logit_lr: the learning rate of the mask logits. 0.1 suits Adam and its relatives, whose steps are about as long
            as the rate.
        weight_decay: of the weights; default: that of the optimiser.

    Returns:
        Groups with the keys ``params``, ``lr``, ``name`` (``"logits"``, ``"weights"``) and ``weight_decay``. A group
        without parameters is left out.

    Raises:
        TypeError: an argument of another type.
        ValueError: no masked layer, no parameter that requires gradients, or a value outside its range.
    """
    for name, value in (("lr", lr), ("logit_lr", logit_lr)):
        if not POSITIVE.holds(value) or value == float("inf"):
            raise ValueError(f"parameter_groups: {name} must {POSITIVE.words}, got {value}")
    if weight_decay is not None and not 0 <= weight_decay < float("inf"):
        raise ValueError(f"parameter_groups: weight_decay must be at least 0 and finite, got {weight_decay}")
    layers = layers_of("parameter_groups", model).values()
    logits = [tensor for tensor in {layer.mask_logits: None for layer in layers} if tensor.requires_grad]
    chosen = {id(tensor) for tensor in logits}
    weights = [each for each in model.parameters() if id(each) not in chosen and each.requires_grad]
    decay = {} if weight_decay is None else {"weight_decay": weight_decay}
    groups = [
        {"params": logits, "lr": logit_lr, "weight_decay": 0.0, "name": LOGITS},
        {"params": weights, "lr": lr, **decay, "name": WEIGHTS},
    ]
    if not any(group["params"] for group in groups):
        raise ValueError("parameter_groups: no parameter of the model requires gradients")
    return [group for group in groups if group["params"]]
