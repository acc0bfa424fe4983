"""SynFlow: synaptic flow, a score that needs no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.nn import masked_layers
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Loss, all_finite, call, differentiate, evaluation, prunable_weights
from stochprune.scores._rounds import in_rounds


@checked
def synflow(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    sparsity: float = 0.9,
    rounds: int = 100,
    input_shape: Sequence[int] | None = None,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``|w| dR/d|w|`` under the mask of the last round but one, where R sums the outputs for an input of ones.

    Tanaka, Kunin, Yamins and Ganguli 2020, "Pruning neural networks without any data by iteratively conserving synaptic
    flow" (arXiv 2006.05467), algorithm 1. As in the authors' code all parameters and running statistics are replaced
    by their absolute values, in evaluation mode and float64, in which products over 100 layers neither vanish nor
    overflow.

    Args:
        loss_fn: not used.
        batches: used for the shape of an input only; not needed with ``input_shape``.
        sparsity: the sparsity at which the scores will be cut.
        rounds: number of rounds; each prunes the same share of the remaining weights. With 1 nothing is pruned before
            the scores.
        input_shape: the shape of one input, without the batch.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a float64 tensor of the weight's shape; 0 for weights pruned in an earlier round. In a ReLU
        network without biases the scores of each layer sum to R.

    Raises:
        ValueError: no input shape, a sparsity outside [0, 1), less than one round, no prunable layer, or a score that
            is not finite.
    """
    parameters = prunable_weights(model, include, exclude)
    if input_shape is None:
        if batches is None:
            raise ValueError("synflow needs input_shape, or batches to take the shape from")
        x = next(iter(batches), (None, None))[0]
        if x is None:
            raise ValueError("batches gave no examples")
        if not x.is_floating_point():
            raise ValueError(
                f"synflow needs floating inputs, which it replaces by ones, got {x.dtype}: choose another score"
            )
        input_shape = x.shape[1:]
    ones = torch.ones(1, *input_shape, dtype=torch.float64, device=next(iter(parameters.values())).device)
    logits = {id(layer.mask_logits) for layer in masked_layers(model).values()}
    values: dict[Tensor, Tensor] = {
        tensor: tensor.detach().double().abs()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.is_floating_point() and id(tensor) not in logits
    }

    def score(masks: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        weights = {
            name: (values[parameter] if masks is None else values[parameter] * masks[name]).requires_grad_()
            for name, parameter in parameters.items()
        }
        with torch.enable_grad():
            flow = call(model, {**values, **{parameters[name]: w for name, w in weights.items()}}, ones).sum()
        grads = differentiate(flow, weights.values())
        return {name: w.detach() * grad for (name, w), grad in zip(weights.items(), grads, strict=True)}

    with evaluation(model):
        return all_finite("synflow", in_rounds(score, sparsity, rounds))
