"""GraSP: the effect of pruning on the gradient flow."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from stochprune.arguments import checked
from stochprune.data.pairs import pairs
from stochprune.nn.selection import Selectors
from stochprune.scores._common import (
    Data,
    Loss,
    all_finite,
    differentiate,
    gradients,
    loss_at,
    mean_over_examples,
    needed,
    prunable_weights,
    repeatable,
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
        temperature: divides the outputs before the loss, as in the authors' code, which uses 200.
        absolute: return ``|w (H g)|``, the size of the effect whatever its sign (used by Tanaka et al. 2020 and Frankle
            et al. 2020, arXiv 2009.08576).
        include, exclude: as in :func:`prunable_weights`.

    Returns:
        By weight name, a tensor of the weight's shape; float64 if the weight is, else float32.

    Raises:
        ValueError: no loss function or examples, a temperature that is not positive, no prunable layer, or a score that
            is not finite.
    """
    loss_fn, batches = needed("grasp", loss_fn, batches)
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    batches = repeatable(batches)
    parameters = prunable_weights(model, include, exclude)

    def softened(output: Tensor, y: Tensor) -> Tensor:
        return loss_fn(output / temperature, y)

    mean = mean_over_examples(gradients(model, softened, batches, parameters))

    values: dict[Tensor, Tensor] = {p: p.detach().requires_grad_() for p in parameters.values()}

    def products() -> Iterator[tuple[int, dict[str, Tensor]]]:
        for x, y in pairs(batches, "batches"):
            grads = differentiate(loss_at(model, softened, values, x, y), values.values(), create_graph=True)
            flow = sum((mean[name].to(g) * g).sum() for name, g in zip(parameters, grads, strict=True))
            assert isinstance(flow, Tensor)
            yield len(x), dict(zip(parameters, differentiate(flow, values.values()), strict=True))

    product = mean_over_examples(products())
    scores = {name: wide(weight) * product[name] for name, weight in parameters.items()}
    return all_finite("grasp", {name: score.abs() for name, score in scores.items()} if absolute else scores)
