"""Posteriors over networks: their random layers and their KL from the prior."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stochprune import rng
from stochprune.arguments import checked
from stochprune.nn import MaskedLinear, layer_kl, masked_layers
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.local_reparameterisation import reparameterise_locally
from stochprune.pac_bayes.digests import ADDRESS, settings_of, tensors_of
from stochprune.pac_bayes.prior import Prior


class Posterior(nn.Module):
    """A network whose random layers are sampled anew in each forward pass.

    It stays in evaluation mode. In training mode the statistics of a normalisation layer would learn from the
    certifying examples, and the KL would not count this.

    Attributes:
        model: the network.
        prior: the initial distribution; KL(Q || P) is 0 there.

    Raises:
        ValueError: layers that share a stream but not their logits, or logits but not a stream.
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
        """Raise if the posterior differs from its prior in something that the KL does not count.

        Args:
            function: the caller, named in the message.

        Raises:
            ValueError: a tensor that is not learnt, or a module, that differs from the prior's, named; layers whose
                masks are not independent; a prior that was edited.
        """
        self.prior.require_unedited(function)
        _require_own_streams(self.layers)
        learnt = {id(tensor) for tensor, _ in self.curvatures()}
        start, now = tensors_of(self.prior.model), tensors_of(self.model)
        for name in {**start, **now}:
            if id(now.get(name)) in learnt or name.rpartition(".")[2] in ADDRESS:
                continue
            if name not in start or name not in now or not _equal(now[name], start[name]):
                raise _unpaid(function, name)
        modules = settings_of(self.model)
        for name in {**self.prior.settings, **modules}:
            if modules.get(name) != self.prior.settings.get(name):
                raise _unpaid(function, f"the module {name or 'itself'}")

    def train(self, mode: bool = True) -> Posterior:
        """Keep evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def kl(self) -> dict[str, Tensor]:
        """Return KL(Q || P) in nats by weight name, float64 and differentiable; the KL of the posterior is the sum."""
        raise NotImplementedError

    def curvatures(self) -> list[tuple[Tensor, Tensor]]:
        """Return the trained parameters, each with the second derivative of the KL, its Fisher information.

        The value is never less than at the prior: the information of a weight that is almost never, or almost always,
        kept goes to 0, and a step divided by it would be unbounded.
        """
        raise NotImplementedError

    def at(self, seed: int, draw: int) -> None:
        """Make the next forward pass sample the network of this seed and draw, and later passes the next draws."""
        for layer in self.layers.values():
            layer.mask_seed.fill_(rng.as_int64(seed))
            layer.mask_draw.fill_(draw)

    def require_one_draw(self, draw: int, draws: int = 1) -> None:
        """Raise if a random layer did not run exactly once per draw since :meth:`at` set ``draw``.

        Each run of a layer samples again. If a layer ran twice, the network would have more randomness than the KL
        counts, and would share some with the network of the next draw.

        Raises:
            ValueError: such a layer, named by its weight.
        """
        counters = torch.cat([layer.mask_draw for layer in self.layers.values()]).tolist()
        for name, counter in zip(self.layers, counters, strict=True):
            if counter != draw + draws:
                runs = (counter - draw) // draws
                raise ValueError(f"{name} ran {runs} times in one forward: a certificate needs layers that run once")

    def kept(self, seed: int, draw: int) -> dict[str, tuple[int, int]]:
        """Return, by weight name, how many weights the mask of this seed and draw keeps, and of how many."""
        self.at(seed, draw)
        masks = {name: layer.mask(draw) for name, layer in self.masks().items()}
        return {name: (int(mask.sum()), mask.numel()) for name, mask in masks.items()}

    def masks(self) -> dict[str, MaskedLayer]:
        """Return the layers that sample masks."""
        return self.layers

    def estimate_by(self, estimator: str, temperature: float = 1.0) -> None:
        """Choose the estimator of the gradient.

        ``local_reparameterisation`` draws pre-activations and no networks, see
        :mod:`stochprune.nn.local_reparameterisation`. Every other name is an estimator of the masks' gradient, see
        :func:`stochprune.functional.masked_linear`.

        Raises:
            ValueError: a layer that local reparameterisation does not support.
        """
        local = estimator == "local_reparameterisation"
        reparameterise_locally(self.layers, local)
        if local:
            return
        for layer in self.layers.values():
            layer.estimator, layer.temperature = estimator, temperature


class MaskPosterior(Posterior):
    """A posterior over masks only: the weights are the prior's, the keep probabilities are trained."""

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


def _unpaid(function: str, name: str) -> ValueError:
    return ValueError(
        f"{function}: {name} differs from the prior's, and the KL does not count it. Learn the posterior with "
        "self_bound, or make a Prior of the changed network with the parts that it has seen"
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    a, b = a.detach().cpu(), b.detach().cpu()
    return a.dtype == b.dtype and a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _require_own_streams(layers: Mapping[str, MaskedLayer]) -> None:
    """Raise unless each tensor of logits has exactly one independent mask, as the KL assumes."""
    for (a, one), (b, other) in itertools.combinations(layers.items(), 2):
        if (one.stream == other.stream) != (one.mask_logits is other.mask_logits):
            shared, apart = ("a stream", "logits") if one.stream == other.stream else ("logits", "streams")
            raise ValueError(
                f"{a} and {b} share {shared} but have different {apart}, so the KL does not count their masks "
                "correctly: convert the whole model at once"
            )


def mask_curvature(logits: Tensor, start: Tensor) -> Tensor:
    """Return q (1 - q) at the logits or at their start, whichever is larger."""
    spreads = (torch.sigmoid(tensor) for tensor in (logits, start))
    return torch.maximum(*(q * (1 - q) for q in spreads))
