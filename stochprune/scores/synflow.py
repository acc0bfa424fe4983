"""SynFlow: synaptic flow, a score that needs no data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.arguments import checked, shown
from stochprune.data.batch_loss import inputs_of, kind_of_batch
from stochprune.nn import masked_layers
from stochprune.nn.evaluation import evaluation
from stochprune.nn.selection import Selectors
from stochprune.scores._common import Data, Loss, all_finite, differentiate, scored_weights, with_values
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
        batches: as for :func:`snip`, used for the shapes of the inputs of one example only; not needed with
            ``input_shape``. Of several inputs, those that are not floating, such as an attention mask, keep the values
            of the first example.
        sparsity: the sparsity at which the scores will be cut.
        rounds: number of rounds; each prunes the same share of the remaining weights. With 1 nothing is pruned before
            the scores.
        input_shape: the shape of one input, without the batch.
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a float64 tensor of the weight's shape; 0 for weights pruned in an earlier round. In a ReLU
        network without biases the scores of each layer sum to R.

    Raises:
        TypeError: a batch of another kind.
        ValueError: no input shape or no floating input, a sparsity outside [0, 1), less than one round, no prunable
            layer, or a score that is not finite.
    """
    parameters = scored_weights("synflow", model, include, exclude)
    device = next(iter(parameters.values())).device
    inputs = _inputs(batches) if input_shape is None else {0: torch.empty(1, *input_shape)}
    args = [_ones(x, device) for name, x in inputs.items() if isinstance(name, int)]
    kwargs = {name: _ones(x, device) for name, x in inputs.items() if isinstance(name, str)}
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
        at: dict[Tensor, Tensor] = {parameters[name]: w for name, w in weights.items()}

        def of_flow(model: nn.Module) -> tuple[Tensor, ...]:
            outputs = model(*args, **kwargs)
            return differentiate(_first(outputs).sum(), weights.values())

        with torch.enable_grad():
            grads = with_values(model, {**values, **at}, of_flow)
        return {name: w.detach() * grad for (name, w), grad in zip(weights.items(), grads, strict=True)}

    with evaluation(model):
        return all_finite("synflow", in_rounds(score, sparsity, rounds))


def _first(outputs: Any) -> Tensor:
    """Return the outputs, or the first of several that is not a single number, as a loss is."""
    if isinstance(outputs, Tensor):
        return outputs
    several = outputs.values() if isinstance(outputs, Mapping) else outputs
    for each in several if isinstance(outputs, Mapping | tuple | list) else ():
        if isinstance(each, Tensor) and each.dim():
            return each
    raise TypeError(f"synflow: the model must return a tensor, or a tuple or mapping of them, got {shown(outputs)}")


def _inputs(batches: Data) -> dict[int | str, Tensor]:
    """Return the inputs of the first example, by position or name."""
    if batches is None:
        raise ValueError("synflow needs input_shape, or batches to take the shape from")
    if (batch := next(iter(batches), None)) is None:
        raise ValueError("synflow: batches gave no examples")
    if (found := inputs_of(batch, labels=False)) is None:
        raise TypeError(f"synflow: batch 0 must be a tuple of tensors or a mapping, got {kind_of_batch(batch)}")
    named: dict[int | str, Any] = dict(enumerate(found[0]))
    named.update(found[1].items())
    inputs = {name: x[:1] for name, x in named.items() if isinstance(x, Tensor) and name != "labels"}
    if not any(x.is_floating_point() for x in inputs.values()):
        raise ValueError(
            f"synflow needs floating inputs, which it replaces by ones, got {', '.join(map(shown, inputs.values()))}: "
            f"choose another score, or give a mapping with inputs_embeds"
        )
    return inputs


def _ones(x: Tensor, device: torch.device) -> Tensor:
    return (torch.ones_like(x, dtype=torch.float64) if x.is_floating_point() else x).to(device)
