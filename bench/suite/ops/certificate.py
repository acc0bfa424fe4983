"""The Monte Carlo draws of a certificate: losses of random networks, each sampled from a posterior."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

import stochprune as sp
from stochprune import rng
from stochprune.nn import masked_layers
from stochprune.nn.layer import MaskedLayer
from stochprune.nn.random_weights import RandomLayer
from stochprune.pac_bayes import Posterior, Prior, make_posterior
from stochprune.pac_bayes.certify import P_MIN, network_losses
from stochprune.pac_bayes.loss import bounded_cross_entropy

from .. import laws
from ..case import DTYPES, Case, Verdict, Way, Work, is_ours
from .layer import SEED, contract_mask, product_work
from .network import DEPTH, flops_of

LAWS = {"masks": "bernoulli", "gaussian": "gaussian", "spike_and_slab": "spike and slab"}
"""The law of a posterior, by its family."""
SHAPE = {"draws": 3, "examples": 2}
"""Draws and examples that are checked."""
Weights = dict[str, Tensor]
"""The random weights of one network by name."""


def contender(way: str, family: str) -> str:
    """Return the name of a contender: ``way`` is ``ours``, ``ours, one by one`` or ``eager``."""
    kind, comma, rest = way.partition(",")
    return way if family == "masks" else f"{kind}, {LAWS[family]}{comma}{rest}"


TOGETHER = {contender("ours", family): family for family in LAWS}
ALONE = {contender("ours, one by one", family): family for family in LAWS}
EAGER = {contender("eager", family): family for family in LAWS}
FAMILY = TOGETHER | ALONE | EAGER


class Layer(NamedTuple):
    """The distribution of the weights of one layer: keep ~ Bernoulli(q), weight ~ N(mean, sigma^2), or both.

    Attributes:
        mean: of the weights before the mask.
        logits: of keeping; None if nothing is masked.
        sigma: standard deviations; None if the weights are fixed.
        stream: of the contract.
    """

    mean: Tensor
    logits: Tensor | None
    sigma: Tensor | None
    stream: int


class Certificate:
    """Losses [draws, examples] of networks from a posterior; each has its own examples. Shape: draws, examples.

    ``ours`` runs all networks in one forward pass, as :func:`stochprune.pac_bayes.certify` does; ``ours, one by one``
    and ``eager`` make a forward pass for each. ``dense`` is one network on all examples. The number of weights is that
    of all networks, so it counts the random numbers: a mask or a normal for each.

    Args:
        build: makes the dense network, always the same, for images [1, 28, 28] of 10 classes.
    """

    baseline = "dense"
    laws: Mapping[str, str] = {"dense": "none", **{name: LAWS[FAMILY[name]] for name in FAMILY}}

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build

    def make(self, contender: str, case: Case, device: torch.device) -> Way:
        """Return a contender at the case's shape."""
        return self.made(contender, case, device, DTYPES[case.dtype])[1]

    def made(
        self, contender: str, case: Case, device: torch.device, dtype: torch.dtype
    ) -> tuple[dict[str, Layer], Way, Posterior]:
        """Return the random layers of a contender by the name of the weight, the contender, and the posterior."""
        posterior = self.posterior(FAMILY.get(contender, "masks"), device, dtype)
        layers = {name: _distribution(layer) for name, layer in posterior.layers.items()}
        x, y = examples(case, device, dtype)
        if contender in TOGETHER or contender in ALONE:
            each = [(x, y)] if contender in TOGETHER else [*zip(x.split(1), y.split(1), strict=True)]
            forward = _ours(posterior, each)
        else:
            model = self.build().eval().requires_grad_(False).to(device, dtype)
            forward = _dense(model, x, y) if contender == "dense" else _eager(model, sampler(layers), x, y)
        given = {**dict(posterior.named_parameters()), "x": x}
        weights = len(x) * sum(layer.mean.numel() for layer in layers.values())
        return layers, Way(forward, given, None, weights), posterior

    def posterior(self, family: str, device: torch.device, dtype: torch.dtype) -> Posterior:
        """Return a posterior whose keep logits are normal around 3, where it masks."""
        model = sp.convert(self.build()).to(device, dtype)
        numbers = torch.Generator().manual_seed(0)
        for layer in masked_layers(model).values():
            layer.mask_logits.detach().copy_(3 + torch.randn(layer.mask_logits.shape, generator=numbers))
        return make_posterior(Prior(model, ()), family).requires_grad_(False)

    def check(self, contender: str, case: Case, device: torch.device) -> Verdict:
        """Compare the losses of a few draws with those of dense networks that have the same random weights, in float64.

        The weights of ours are those of the contract. The eager ways show theirs: the generator of PyTorch starts from
        the same state again.
        """
        small = dataclasses.replace(case, shape=SHAPE)
        layers, way, posterior = self.made(contender, small, device, torch.float64)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)
            found = way.forward()
            torch.manual_seed(0)
            if is_ours(contender):
                networks = [_contract(layers, draw) for draw in range(SHAPE["draws"])]
            else:
                sample = sampler(layers) if contender in EAGER else dict
                networks = [sample() for _ in range(SHAPE["draws"])]
        model = self.build().eval().requires_grad_(False).to(device).double()
        right = _eager(model, iter(networks).__next__, *examples(small, device, torch.float64))()
        wrong = laws.near("losses", found, right, torch.float32)
        if contender in EAGER:
            wrong = wrong or _sampled(layers, networks)
        if wrong is None:
            losses = self.make(contender, case, device).forward()
            expected = case.shape["draws"], case.shape["examples"]
            if losses.shape != expected or not losses.isfinite().all():
                wrong = f"losses {tuple(losses.shape)} of the case are not {expected} finite numbers"
        if wrong is not None or not is_ours(contender):
            return Verdict(wrong)
        found = self.made(contender, small, device, DTYPES[case.dtype])[1].forward()
        wrong = laws.near("losses", found, right, DTYPES[case.dtype], factor=DEPTH)
        return Verdict(wrong, _bits_equal(posterior, networks) if posterior.masks() else None)

    def work(self, case: Case, part: str) -> Work:
        """Count the operations of the dense network on all examples, and every weight and logit once."""
        weights = sum(tensor.numel() for tensor in self.build().parameters() if tensor.dim() > 1)
        count = case.shape["draws"] * case.shape["examples"]
        return product_work(case, part, self._flops * count, weights, 28 * 28 * count)

    @functools.cached_property
    def _flops(self) -> int:
        """The operations of one example."""
        return flops_of(self.build(), torch.zeros(1, 1, 28, 28))


def examples(case: Case, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return images [draws, examples, 1, 28, 28], and labels [draws, examples]."""
    shape = case.shape["draws"], case.shape["examples"]
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 1, 28, 28, generator=numbers).to(device, dtype)
    return x, torch.randint(0, 10, shape, generator=numbers).to(device)


def sampler(layers: Mapping[str, Layer]) -> Callable[[], Weights]:
    """Return a function that samples the weights of a network in plain PyTorch.

    Probabilities and deviations are computed once, because the posterior of a certificate is fixed.
    """
    keep = {name: torch.sigmoid(layer.logits) for name, layer in layers.items() if layer.logits is not None}

    def sample() -> Weights:
        found = {}
        for name, layer in layers.items():
            weight = layer.mean
            if layer.sigma is not None:
                weight = weight + layer.sigma * torch.randn_like(weight)
            found[name] = weight * torch.bernoulli(keep[name]) if name in keep else weight
        return found

    return sample


def _distribution(layer: MaskedLayer) -> Layer:
    weight, logits = layer.weight.detach(), layer.mask_logits.detach()
    if isinstance(layer, RandomLayer):
        return Layer(weight, logits if layer.masked else None, layer.sigma.detach().to(weight.dtype), layer.stream)
    return Layer(weight, logits, None, layer.stream)


def _ours(posterior: Posterior, each: list[tuple[Tensor, Tensor]]) -> Callable[[], Tensor]:
    """Return the function that makes a forward pass for each pair of examples and labels, at successive draws."""
    first = itertools.count()

    def one(x: Tensor, y: Tensor) -> Tensor:
        draws = [next(first) for _ in x]
        return network_losses(posterior, x, y, "cross_entropy", SEED, draws[0])

    return lambda: torch.cat([one(*pair) for pair in each])


@torch.no_grad()
def _losses(outputs: Tensor, y: Tensor) -> Tensor:
    return bounded_cross_entropy(outputs.double(), y.flatten(), P_MIN).view(y.shape)


def _dense(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    return lambda: _losses(model(x.flatten(0, 1)), y)


def _eager(model: nn.Module, sample: Callable[[], Weights], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return the function that runs a network with the weights of each sample, one after the other."""

    def one(x: Tensor, y: Tensor) -> Tensor:
        return _losses(torch.func.functional_call(model, sample(), (x,)), y)

    return lambda: torch.stack([one(*pair) for pair in zip(x, y, strict=True)])


def _contract(layers: Mapping[str, Layer], draw: int) -> Weights:
    """Return the weights of a network by the slow text of the contract, float64."""
    found = {}
    for name, layer in layers.items():
        weight = layer.mean
        if layer.sigma is not None:
            at = {"seed": SEED, "draw": draw, "stream": layer.stream}
            e = rng.normal(*weight.flatten(1).shape, **at, device=weight.device)
            weight = weight + layer.sigma * e.view(weight.shape)
        if layer.logits is not None:
            weight = weight * contract_mask(layer.logits, draw, SEED, layer.stream)
        found[name] = weight
    return found


def _bits_equal(posterior: Posterior, networks: list[Weights]) -> bool:
    """Return True if the masks of our layers are those of the networks, whose weights have no other zeros."""
    for layer in posterior.layers.values():
        layer.mask_seed.fill_(SEED)
    pairs = ((layer.mask(d), w[name]) for d, w in enumerate(networks) for name, layer in posterior.layers.items())
    return all(torch.equal(mask, weight != 0) for mask, weight in pairs)


def _sampled(layers: Mapping[str, Layer], networks: list[Weights]) -> str | None:
    """Return what is wrong with the distribution of sampled weights, or None."""
    for name, layer in layers.items():
        sampled = torch.stack([weights[name] for weights in networks]).double().flatten(1)
        mean, keep = layer.mean.double().flatten(), sampled != 0
        wrong = None if layer.logits is None else laws.shares(keep, layer.logits.flatten())
        if layer.sigma is None:
            wrong = wrong or laws.near(f"weights of {name}", sampled, mean * keep, torch.float32)
        else:
            e = (sampled - mean) / layer.sigma.double().flatten()
            wrong = wrong or laws.standard(f"weights of {name}", e[keep])
        if wrong is not None or torch.equal(sampled[0], sampled[1]):
            return wrong or "two draws have the same weights"
    return None
