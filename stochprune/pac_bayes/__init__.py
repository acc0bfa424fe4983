"""PAC-Bayes certificates: priors, self-bounded learning, Monte Carlo certification. See docs/bounds.md."""

from stochprune.pac_bayes.certificate import Certificate
from stochprune.pac_bayes.certify import certify
from stochprune.pac_bayes.config import CertifyConfig, PriorConfig, RunConfig, SelfBoundConfig
from stochprune.pac_bayes.families import make_posterior
from stochprune.pac_bayes.posterior import Posterior
from stochprune.pac_bayes.prior import Prior, train_prior
from stochprune.pac_bayes.replay import Replay, replay
from stochprune.pac_bayes.rerun import Rerun, rerun
from stochprune.pac_bayes.run import run_certify
from stochprune.pac_bayes.self_bound import SelfBoundResult, self_bound
from stochprune.pac_bayes.verify import load_certificate

__all__ = [
    "Certificate",
    "CertifyConfig",
    "Posterior",
    "Prior",
    "PriorConfig",
    "Replay",
    "Rerun",
    "RunConfig",
    "SelfBoundConfig",
    "SelfBoundResult",
    "certify",
    "load_certificate",
    "make_posterior",
    "replay",
    "rerun",
    "run_certify",
    "self_bound",
    "train_prior",
]
