"""PAC-Bayes certificates: priors, self-bounded learning, Monte Carlo certification. See docs/bounds.md."""

from stochprune.pac_bayes.certificate import Certificate, load_certificate
from stochprune.pac_bayes.certify import certify
from stochprune.pac_bayes.config import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior, train_prior
from stochprune.pac_bayes.run import Replay, replay, run_certify
from stochprune.pac_bayes.self_bound import SelfBoundResult, self_bound

__all__ = [
    "Certificate",
    "CertifyConfig",
    "Posterior",
    "Prior",
    "PriorConfig",
    "Replay",
    "RunConfig",
    "SelfBoundConfig",
    "SelfBoundResult",
    "certify",
    "load_certificate",
    "make_posterior",
    "replay",
    "run_certify",
    "self_bound",
    "train_prior",
]
