"""The posteriors by name."""

from __future__ import annotations

from stochprune.arguments import checked
from stochprune.pac_bayes.config import POSTERIORS, check_family
from stochprune.pac_bayes.posterior import MaskPosterior, Posterior
from stochprune.pac_bayes.prior import Prior
from stochprune.pac_bayes.weights import SpikeAndSlabPosterior, WeightPosterior

TYPES = MaskPosterior, WeightPosterior, SpikeAndSlabPosterior
FAMILIES: dict[str, type[Posterior]] = dict(zip(POSTERIORS, TYPES, strict=True))


@checked
def make_posterior(prior: Prior, family: str) -> Posterior:
    """Make a posterior that equals the prior: ``masks``, ``gaussian`` (weights) or ``spike_and_slab`` (both).

    Raises:
        ValueError: an unknown family (the message lists the known ones), or a network that the family does not support.
    """
    check_family(family)
    return FAMILIES[family](prior)
