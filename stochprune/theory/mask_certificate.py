"""The certificate of a trained network under random masks of its weights."""

from __future__ import annotations

import copy
from pathlib import Path

from torch import nn

from stochprune.data.splits import Split
from stochprune.nn import convert
from stochprune.pac_bayes.certificate import Certificate
from stochprune.pac_bayes.certify import certify
from stochprune.pac_bayes.config import CertifyConfig
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.prior import Prior


def mask_certificate(
    model: nn.Module, parts: Split, config: CertifyConfig, *, keep: float, seed: int, folder: Path
) -> Certificate:
    """Certify the weights of ``model`` under random masks, without learning the masks.

    The network is its own prior, so the KL is 0 but for the rounding of probabilities to 1/32768.

    Args:
        model: trained on ``parts.prior`` only; it stays as it is. Its device is that of the draws.
        parts: the split; the certificate uses ``parts.certify``.
        keep: the probability with which a mask keeps a weight.
        seed: of the masks and of the draws.
        folder: the draws so far are stored there.

    Raises:
        ValueError: a data-free split, or as :func:`stochprune.certify`.
    """
    if parts.prior is None:
        raise ValueError("mask_certificate: parts has no prior part, on which the model was trained; split the data")
    random = convert(copy.deepcopy(model), keep_kept=keep, seed=seed).requires_grad_(False).eval()
    posterior = make_posterior(Prior(random, (parts.prior,)), "masks")
    held_out = parts.certify.to(next(random.parameters()).device)
    return certify(posterior, held_out, config, seed=seed, folder=folder)
