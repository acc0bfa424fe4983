"""A test on a few examples that the network processes each example independently, as a certificate assumes.

A certificate bounds the loss of one example at a time, but the draws process batches. Both agree if the output for an
example depends only on the example and the sampled network: not on the other examples of the batch, its position there,
the size of the batch, or earlier forward passes.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from stochprune.data.splits import Subset
from stochprune.pac_bayes.digests import tensor_digests
from stochprune.pac_bayes.posterior import Posterior
from stochprune.seeding import generator

_ALONE = 4
"""Examples that are run alone."""
_ADVICE = {
    True: "Make each layer process each example independently (normalise with running statistics, not with those of "
    "the batch), or certify with draw_examples=1, which runs no batches",
    False: "Remove layers that use random numbers of their own, count or remember in evaluation mode",
}


class Trial:
    """Runs one network of a posterior on some of the certifying examples, alone and in batches, and compares.

    The largest finite output of each example is subtracted from its outputs; neither loss depends on it. Each class is
    then compared separately, so that a class masked by -1e9 or -inf does not hide the others. Sums in another order
    differ by rounding, in proportion to the size of the outputs and to eps, the rounding of the coarsest dtype used. An
    output that depends on other examples differs by about the spread of the outputs over examples. Allowed are
    sqrt(eps) spread + eps^(2/3) size, of the class, plus four roundings of the largest output: in float32 about a
    hundred roundings, and 0.03 % of the spread.

    Args:
        batch: number of examples in a forward pass of the draws; with 1 no batches are tested.
        seed: chooses network and examples, 0 .. 2^64 - 1.
    """

    def __init__(self, posterior: Posterior, part: Subset, batch: int, seed: int) -> None:
        self.posterior = posterior
        numbers = generator(seed, "certify", "trial")
        self.seed = int(numbers.integers(1 << 63))
        chosen = torch.from_numpy(numbers.permutation(len(part))[: 2 * max(batch, _ALONE)]).to(part.x.device)
        self.x, self.y = part.x[chosen], part.y
        self.count = min(batch, len(part))
        """Examples in the batch, the first of ``x``."""
        last = max(self.count, min(_ALONE, len(part))) - 1
        self.alone = sorted({0, min(1, last), last // 2, last})
        self.order = torch.from_numpy(numbers.permutation(self.count))
        self.before = tensor_digests(posterior.model)
        self.single = torch.empty(0)

    def start(self) -> None:
        """Compare examples alone, alone again, in a batch, in another order, and with other examples.

        Raises:
            ValueError: outputs differ, or are not [B, classes] for labels 0 .. classes - 1; a layer that stays in
                training mode, or a forward pass that changes a tensor of the network.
        """
        if training := [name for name, module in self.posterior.model.named_modules() if module.training]:
            raise ValueError(f"certify: {training[0] or 'the network'} stays in training mode after eval()")
        self.single = self._each_alone()
        self._check_labels()
        self._compare(self.single[:1], self._run([0]), [0], [0], "when it is run again")
        if self.count > 1:
            rows, batch = [i for i in self.alone if i < self.count], list(range(self.count))
            outputs = self._run(batch)
            self._compare(self.single[: len(rows)], outputs[rows], rows, batch, f"in a batch of {self.count}")
            mixed = self.order.tolist()
            self._compare(outputs[self.order], self._run(mixed), mixed, mixed, "in another order of the batch")
            company = [*rows, *range(self.count, len(self.x))][: max(2, self.count // 2)]
            kept = min(len(rows), len(company))
            self._compare(self.single[:kept], self._run(company)[:kept], rows, company, "in other company")
        self.end()

    def end(self) -> None:
        """Compare the outputs of examples alone with those at the start.

        Raises:
            ValueError: outputs differ, or a tensor of the network has changed.
        """
        self._compare(self.single, self._each_alone(), self.alone, self.alone[:1], "after other examples were run")
        after = tensor_digests(self.posterior.model)
        for name in {**self.before, **after}:
            if self.before.get(name) != after.get(name):
                raise ValueError(f"certify: a forward of the network changes {name}, though it is in evaluation mode")

    @torch.no_grad()
    def _run(self, chosen: list[int]) -> Tensor:
        """Return the outputs [n, classes] of the trial's network on examples in one batch."""
        self.posterior.at(self.seed, 0)
        try:
            outputs = self.posterior(self.x[chosen].to(next(self.posterior.parameters()).device))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise ValueError(f"certify: the network fails on a batch of {len(chosen)}: {error}") from error
        self.posterior.require_one_draw(0)
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(chosen):
            shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(
                f"certify: for {len(chosen)} examples the network must return a tensor [{len(chosen)}, classes], "
                f"got {shape}"
            )
        return outputs

    def _each_alone(self) -> Tensor:
        return torch.cat([self._run([i]) for i in self.alone])

    def _check_labels(self) -> None:
        low, high, classes = int(self.y.min()), int(self.y.max()), self.single.shape[1]
        if self.y.is_floating_point() or not 0 <= low <= high < classes:
            raise ValueError(
                f"certify: the network has {classes} outputs, so labels must be integers in 0 .. {classes - 1}, "
                f"got {self.y.dtype} in {low} .. {high}"
            )

    def _compare(self, expected: Tensor, found: Tensor, examples: list[int], batch: list[int], where: str) -> None:
        """Raise if outputs [n, classes] of the ``examples`` differ; ``found`` are those in ``batch``."""
        eps = self._eps(found)
        a, b = _below_the_largest(expected), _below_the_largest(found)
        largest = torch.cat([expected, found]).double().nan_to_num(0.0, 0.0, 0.0).amax(1).abs().max()
        differences, allowed = _differences(a, b), _rounding(a, b, eps) + 4 * eps * largest  # [n, classes], [classes]
        excess = torch.where(differences > allowed, differences, 0.0)
        if not bool(excess.any()):
            return
        worst, column = divmod(int(excess.argmax()), excess.shape[1])
        example = examples[worst]
        alone, ordered = [example], list(range(self.count))
        first = self._first_module(example, alone, batch, eps)
        if not first and example in ordered:
            first = self._first_module(example, ordered, batch, eps)
        raise ValueError(
            f"certify: the network's output for an example changes {where}: it differs by "
            f"{differences[worst, column]:.3g}, rounding explains {allowed[column]:.3g}. {first}A certificate bounds "
            f"the loss of one example at a time. {_ADVICE[len(batch) > 1]}"
        )

    def _eps(self, outputs: Tensor) -> float:
        """Return the eps of the coarsest dtype used."""
        device = outputs.device.type
        dtypes = {outputs.dtype, *(p.dtype for p in self.posterior.model.parameters() if p.is_floating_point())}
        if torch.is_autocast_enabled(device):
            dtypes.add(torch.get_autocast_dtype(device))
        eps = max(torch.finfo(dtype).eps for dtype in dtypes if dtype.is_floating_point)
        # GPUs multiply float32 in TF32, which has ten bits, in convolutions and wherever it is allowed.
        return max(eps, 2.0**-10) if device == "cuda" and torch.float32 in dtypes else eps

    def _first_module(self, example: int, one: list[int], other: list[int], eps: float) -> str:
        """Name the first module whose output for an example differs between two batches, if there is one."""
        with contextlib.suppress(ValueError):
            runs = [self._outputs_by_module(batch, batch.index(example)) for batch in (one, other)]
            for (name, kind, a), (_, _, b) in zip(*runs, strict=False):
                a, b = a.double().flatten()[None], b.double().flatten()[None]
                if a.shape != b.shape or float(_differences(a, b).max()) > eps**0.5 * float(a.abs().max()):
                    return f"The first module whose output differs is {name or 'the network itself'} ({kind}). "
        return ""

    def _outputs_by_module(self, batch: list[int], row: int) -> list[tuple[str, str, Tensor]]:
        """Return name, type and output of each module for one example of a batch, in the order in which they end."""
        found: list[tuple[str, str, Tensor]] = []

        def record(name: str) -> Any:
            def hook(module: nn.Module, _: Any, y: Any) -> None:
                if isinstance(y, Tensor) and y.ndim and len(y) == len(batch) and y.is_floating_point():
                    found.append((name, type(module).__name__, y[row].detach().clone()))

            return hook

        with contextlib.ExitStack() as stack:
            for name, module in self.posterior.model.named_modules():
                stack.enter_context(module.register_forward_hook(record(name)))
            self._run(batch)
        return found


def _below_the_largest(outputs: Tensor) -> Tensor:
    """Return outputs [n, classes] minus the largest finite one of each row, float64."""
    wide = outputs.double()
    largest = wide.masked_fill(~wide.isfinite(), -math.inf).amax(1, keepdim=True)
    return wide - largest.masked_fill(largest.isinf(), 0.0)


def _differences(a: Tensor, b: Tensor) -> Tensor:
    """Return elementwise differences; numbers that are not finite differ from everything but the same value."""
    same = (a == b) | (a.isnan() & b.isnan())
    return torch.where(same, 0.0, (a - b).abs().nan_to_num(nan=math.inf))


def _rounding(a: Tensor, b: Tensor, eps: float) -> Tensor:
    """Return the difference of outputs [n, classes] that rounding may explain, by class."""
    rows = torch.cat([a, b])
    finite = rows.isfinite()
    rows = rows.masked_fill(~finite, 0.0)
    mean = rows.sum(0) / finite.sum(0).clamp_min(1)
    spread = (rows - mean).masked_fill(~finite, 0.0).abs().amax(0)
    return eps**0.5 * spread + eps ** (2 / 3) * rows.abs().amax(0)
