"""Certify the test error of a network of your own.

    python examples/certificate.py

Half of the handwritten digits of scikit-learn train a prior, a network with random masks. The other half certifies it:
with probability 0.965 its expected error on new digits is at most the bound. The certificate is written to a file and
recomputed from it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor, nn

import stochprune as sp


class TwoBranches(nn.Module):
    """A network that no catalogue contains: a linear branch beside a deeper one."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = sp.models.mlp((64, 100, 10), seed=0)
        self.skip = sp.models.mlp((64, 10), seed=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.deep(x) + self.skip(x)


def main() -> None:
    data = sp.data.digits(standardised=False)  # no example may depend on another one
    parts = sp.data.split(data.train_x, data.train_y, 0.5, seed=0)
    prior = sp.pac_bayes.train_prior(TwoBranches(), parts.prior, sp.pac_bayes.PriorConfig(prior_epochs=30))
    learnt = sp.self_bound(prior, parts.certify, sp.pac_bayes.SelfBoundConfig(epochs=3, batch_size=64))
    certificate = sp.certify(learnt.posterior, parts.certify, sp.pac_bayes.CertifyConfig(draws=2000))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "certificate.json"
        certificate.save(path)
        read = sp.pac_bayes.load_certificate(path)  # computes every number again
    print(f"error on new digits <= {read.bound:.4f} with probability {1 - read.delta - read.delta_draws:.3f}")
    print(f"mean error of the sampled networks {read.mean_loss:.4f}, KL {read.total_kl:.3g} nats, m = {read.m}")


if __name__ == "__main__":
    main()
