"""GraSP: the effect of pruning on the gradient flow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from stochprune.arguments import checked, shown
from stochprune.data.batch_loss import BatchLoss, Found, count_examples, kind_of_batch
from stochprune.nn.selection import Selectors
from stochprune.scores._common import (
    Data,
    Loss,
    all_finite,
    differentiate,
    gradient_at,
    gradients,
    mean_over_examples,
    needed,
    repeatable,
    scored_weights,
    wide,
)


@checked
def grasp(
    model: nn.Module,
    loss_fn: Loss = None,
    batches: Data = None,
    *,
    temperature: float = 200.0,
    absolute: bool = False,
    include: Selectors | None = None,
    exclude: Selectors | None = None,
) -> dict[str, Tensor]:
    """Return ``w (H g)``, where g is the gradient and H the Hessian of the mean loss in the prunable weights.

    To first order, removing w changes ``|g|^2 / 2`` by ``-w (H g)``. The authors remove the weights with the highest
    ``-w (H g)``, which hinder the gradient flow. This score has the opposite sign, so that higher means keep here too.
    Wang, Zhang and Grosse 2020, "Picking winning tickets before training by preserving gradient flow" (arXiv
    2002.07376), equation 8 and algorithm 2.

    Args:
        loss_fn, batches: as for :func:`snip`; the batches are iterated twice.
        temperature: divides the outputs before the loss, as in the authors' code, which uses 200. Needs outputs that
            are a tensor and a loss that is not computed by the model or a hook; with 1 any loss will do.
        absolute: return ``|w (H g)|``, the size of the effect whatever its sign (used by Tanaka et al. 2020 and Frankle
            et al. 2020, arXiv 2009.08576).
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, a temperature that is not positive or that the loss cannot have, no
            prunable layer, or a score that is not finite.
        RuntimeError: the model uses activation checkpointing.
    """
    loss, batches = needed("grasp", loss_fn, batches)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    softened = loss if temperature == 1 else _Softened(loss, temperature)
    batches = repeatable(batches)
    parameters = scored_weights("grasp", model, include, exclude)

    mean = mean_over_examples(gradients(model, softened, batches, parameters))

    values: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in parameters.values()}

    def products() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for number, batch in enumerate(batches):
            grads = gradient_at(model, softened, values, batch, number, create_graph=True)
            flow = sum((mean[name].to(g) * g).sum() for name, g in zip(parameters, grads, strict=True))
            assert isinstance(flow, Tensor)
            yield count_examples(batch), dict(zip(parameters, differentiate(flow, values.values()), strict=True))

    product = mean_over_examples(products())
    scores = {name: wide(weight) * product[name] for name, weight in parameters.items()}
    return all_finite("grasp", {name: score.abs() for name, score in scores.items()} if absolute else scores)


class _Softened(BatchLoss):
    """A loss of outputs that are divided by a temperature."""

    def __init__(self, loss: BatchLoss, temperature: float) -> None:
        soft = None if (given := loss.loss_fn) is None else lambda outputs, y: given(self._softer(outputs), y)
        super().__init__(soft, loss.hook, loss.dtype, loss.argument)
        self.temperature = temperature

    def _softer(self, outputs: Any) -> Tensor:
        if not isinstance(outputs, Tensor):
            raise ValueError(
                f"{self.argument}: temperature {self.temperature:g} divides the outputs before the loss, but the model "
                f"returns {shown(outputs)}: pass temperature=1"
            )
        return outputs / self.temperature

    def __call__(self, model: nn.Module, batch: Any, number: int) -> Found:
        found = super().__call__(model, batch, number)
        if self.hook or isinstance(batch, Mapping):
            raise ValueError(
                f"{self.argument}: temperature {self.temperature:g} divides the outputs before the loss, but "
                f"{'a hook' if self.hook else 'the model'} computes the loss of batch {number}, "
                f"{kind_of_batch(batch)}: pass temperature=1"
            )
        return found
