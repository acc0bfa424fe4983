"""The table of rules by torch function, and the trace of a whole model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from torch import nn

from stochprune.shrinking import products, rules
from stochprune.shrinking.flow import Flow, Result
from stochprune.shrinking.recorder import Call, tensors_in

Rule = Callable[[Flow, Call], Result | None]


def trace(model: nn.Module, example_inputs: Any) -> Flow:
    """Return the units, constants and needs of one forward pass of a model."""
    return Flow(model, rule=apply_rule).trace(example_inputs)


def apply_rule(flow: Flow, call: Call) -> Result:
    """Return the values of a call's results, and how needs go back. Without a rule, all that is touched stays."""
    arguments = tensors_in((call.args, call.kwargs))
    if call.kwargs.get("out") is not None:
        flow.refuse(f"writes into a tensor given to {call.where}")
    if not tensors_in(call.out):
        constant = call.name not in _READS or all(bool(flow.value(tensor).known.all()) for tensor in arguments)
        if not constant and call.name == "setitem":
            flow.refuse(f"writes into a part of a tensor ({call.where})")
        elif not constant:
            flow.refuse(f"reads the value of a tensor ({call.where}), so that other inputs may take another path")
        return [], None
    rule = _rule_of(call)
    return (rule and rule(flow, call)) or _strange(flow, call)


def takes_sizes(call: Call) -> bool:
    """Return True if the numbers among a call's arguments may be sizes, which a cut changes."""
    sized = rules.movement, rules.constants, rules.channels, rules.layer_norm, products.convolution
    return _rule_of(call) in sized


def _rule_of(call: Call) -> Rule | None:
    spatial = re.search(r"_pool\dd?$|^interpolate$|^pad$", call.name)
    return RULES.get(call.name, rules.spatial if spatial else None)


def _strange(flow: Flow, call: Call) -> Result:
    """Needs go back from any result to all arguments, and the units of these stay."""
    values = [flow.value(tensor) for tensor in tensors_in((call.args, call.kwargs))]
    # A function of constants gives constants, unless it is random or leaves memory as it is.
    known = bool(values) and not _RANDOM.search(call.name) and all(bool(value.known.all()) for value in values)
    outs = [flow.fixed(tensor, known) for tensor in tensors_in(call.out)]
    flow.strange.append((call, values, outs))

    def pull() -> None:
        if any(bool(out.live.any()) for out in outs):
            for value in values:
                value.needed.fill_(True)

    return outs, pull


def _rules(rule: Rule, names: str) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_rules(
        rules.elementwise,
        """abs add addcmul and bfloat16 bool celu ceil clamp clamp_max clamp_min clone contiguous cos detach div double
        elu eq erf exp float floor ge gelu gt half hardsigmoid hardswish hardtanh int le leaky_relu lerp log log1p
        logical_and logical_not logical_or logsigmoid lt masked_fill maximum minimum mish mul multiply ne neg or
        pow rdiv reciprocal relu relu6 round rpow rsqrt rsub selu sigmoid sign silu sin softplus softsign sqrt
        square sub subtract tanh threshold to true_divide truediv type type_as where""",
    ),
    **_rules(rules.elementwise, " ".join(rules.DROPOUTS)),
    **_rules(
        rules.movement,
        """H T mT cat channel_shuffle chunk concat concatenate data expand expand_as flatten flip getitem hstack mH
        movedim moveaxis narrow permute pixel_shuffle pixel_unshuffle ravel repeat repeat_interleave reshape
        reshape_as roll select split split_with_sizes squeeze stack swapaxes t tensor_split tile transpose unbind
        unflatten unsqueeze view view_as vstack""",
    ),
    **_rules(
        rules.constants,
        """arange eye full full_like linspace new_full new_ones new_zeros ones ones_like scalar_tensor tensor
        tril_indices triu_indices zeros zeros_like""",
    ),
    **_rules(rules.reduction, "sum mean amax amin"),
    **_rules(rules.softmax, "softmax log_softmax"),
    **_rules(rules.layer_norm, "layer_norm rms_norm"),
    **_rules(rules.channels, "batch_norm group_norm instance_norm prelu"),
    **_rules(rules.embedding, "embedding"),
    **_rules(products.linear, "linear"),
    **_rules(products.matmul, "matmul"),
    **_rules(products.addmm, "addmm"),
    **_rules(products.attention, "bmm scaled_dot_product_attention"),
    **_rules(products.convolution, "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"),
}
_RANDOM = re.compile(
    "rand|bernoulli|binomial|cauchy|dropout|empty|exponential|geometric|multinomial|normal|poisson|uniform"
)
_READS = {
    "item",
    "tolist",
    "bool",
    "float",
    "int",
    "index",
    "numpy",
    "array",
    "contains",
    "equal",
    "allclose",
    "setitem",
}
