"""Posteriors over networks: what is random in them, and how far they are from their prior."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stochprune import functional, rng
from stochprune.arguments import checked
from stochprune.nn import MaskedLinear, layer_kl, masked_layers
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.local_reparameterisation import reparameterise_locally
from stochprune.pac_bayes.digests import ADDRESS, tensors_of
from stochprune.pac_bayes.prior import Prior


class Posterior(nn.Module):
    """A network each of whose forwards draws the random layers anew. It stays in evaluation mode: the statistics of a
    normalisation layer would otherwise take in the certifying examples at no cost.

    Attributes:
        model: the network.
        prior: what it starts from; KL(Q || P) is 0 there.

    Raises:
        ValueError: layers that share a stream and not their logits, or these and no stream.
    """

    @checked
    def __init__(self, prior: Prior) -> None:
        super().__init__()
        prior.require_unedited("make_posterior")
        self.prior = prior
        self.model = copy.deepcopy(prior.model).requires_grad_(False).eval()
        self.layers = masked_layers(self.model)
        _require_own_streams(self.layers)
        for layer in self.layers.values():
            layer.sample = True

    def require_paid(self, function: str) -> None:
        """Refuse a posterior that differs from its prior in more than its divergence counts.

        Args:
            function: names the caller in the message.

        Raises:
            ValueError: a tensor that is not learnt and not the prior's, by its name; a prior that was edited.
        """
        self.prior.require_unedited(function)
        learnt = {id(tensor) for tensor, _ in self.curvatures()}
        start = tensors_of(self.prior.model)
        for name, value in tensors_of(self.model).items():
            if id(value) in learnt or name.rpartition(".")[2] in ADDRESS:
                continue
            if name not in start or not _equal(value, start[name]):
                raise ValueError(
                    f"{function}: {name} is not the prior's, and the divergence does not count it. Learn the posterior "
                    "by self_bound, or make a Prior of the changed network that names what it has seen"
                )

    def train(self, mode: bool = True) -> Posterior:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def kl(self) -> dict[str, Tensor]:
        """KL(Q || P) in nats by weight, float64 and differentiable; the posterior's is the sum."""
        raise NotImplementedError

    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        """The trained parameters, each with the second derivative of the divergence in it, its Fisher information.

        Away from the prior no less than there: the information of a weight that is hardly ever, or always, kept
        vanishes, and a step divided by it would know no bounds.
        """
        raise NotImplementedError

    def at(self, seed: int, draw: int) -> None:
        """The next forward draws the network of this address, and the following ones those after it."""
        for layer in self.layers.values():
            layer.mask_seed.fill_(rng.as_int64(seed))
            layer.mask_draw.fill_(draw)

    def require_one_draw(self, draw: int, draws: int = 1) -> None:
        """Refuse networks one of whose random layers ran several times, or not once, since :meth:`at` set ``draw``.

        Each run draws anew: a network would have more randomness than its divergence pays for, and share some with
        the network of the next draw.

        Raises:
            ValueError: such a layer, by its weight's name.
        """
        counters = torch.cat([layer.mask_draw for layer in self.layers.values()]).tolist()
        for name, counter in zip(self.layers, counters, strict=True):
            if counter != draw + draws:
                runs = (counter - draw) // draws
                raise ValueError(f"{name} ran {runs} times in one forward: a certificate needs layers that run once")

    def kept(self, seed: int, draw: int) -> dict[str, tuple[int, int]]:
        """By weight name: how many weights the mask of this address keeps, and of how many."""
        found = {}
        for name, layer in self.masks().items():
            threshold = rng.threshold_from_logits(layer.mask_logits.flatten(1))
            mask = functional.keep_mask(threshold, seed=seed, draw=draw, stream=layer.stream)
            found[name] = (int(mask.sum()), mask.numel())
        return found

    def masks(self) -> dict[str, MaskedLayer]:
        """The layers that draw masks."""
        return self.layers

    def estimate_by(self, estimator: str, temperature: float = 1.0) -> None:
        """Choose the estimator of the gradient.

        ``local_reparameterisation`` draws pre-activations and no networks, see
        :mod:`stochprune.nn.local_reparameterisation`. Every other name is an estimator of the masks' gradient, see
        :func:`stochprune.functional.masked_linear`.

        Raises:
            ValueError: a layer that local reparameterisation does not serve.
        """
        local = estimator == "local_reparameterisation"
        reparameterise_locally(self.layers, local)
        if local:
            return
        for layer in self.layers.values():
            layer.estimator, layer.temperature = estimator, temperature


class MaskPosterior(Posterior):
    """A posterior over masks alone: the weights are the prior's, the keep probabilities are trained."""

    def __init__(self, prior: Prior) -> None:
        super().__init__(prior)
        # Tied layers share one tensor of logits.
        self.logits = list({id(layer.mask_logits): layer.mask_logits for layer in self.layers.values()}.values())
        for tensor in self.logits:
            tensor.requires_grad_(True)
        self.start = {name: layer.mask_logits.detach().clone() for name, layer in self.layers.items()}
        for name, layer in self.layers.items():
            if isinstance(layer, MaskedLinear):
                layer.prior_logits = self.start[name]

    def kl(self) -> dict[str, Tensor]:
        return layer_kl(self.model, self.start)

    @torch.no_grad()
    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        start = {id(layer.mask_logits): self.start[name] for name, layer in self.layers.items()}
        return [(tensor, mask_curvature(tensor, start[id(tensor)])) for tensor in self.logits]


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach().cpu(), b.detach().cpu()
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _require_own_streams(layers: Mapping[str, MaskedLayer]) -> None:
    """The divergence is that of one independent mask for each tensor of logits."""
    for (a, one), (b, other) in itertools.combinations(layers.items(), 2):
        if (one.stream == other.stream) != (one.mask_logits is other.mask_logits):
            shared, apart = ("a stream", "logits") if one.stream == other.stream else ("logits", "streams")
            raise ValueError(
                f"{a} and {b} share {shared} and have {apart} of their own, so that the masks drawn are not those that "
                f"the divergence counts: convert the whole model at once"
            )


def mask_curvature(logits: Tensor, start: Tensor) -> Tensor:
    """q (1 - q), at the logits or at their start, whichever is larger."""
    spreads = (torch.sigmoid(tensor) for tensor in (logits, start))
    return torch.maximum(*(q * (1 - q) for q in spreads))
