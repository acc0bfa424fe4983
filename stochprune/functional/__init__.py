"""The ops: argument checks at the edge, then ``torch.library`` operators with autograd, fake and vmap rules."""

from stochprune.functional.bernoulli_kl import bernoulli_kl
from stochprune.functional.gaussian_kl import gaussian_kl, spike_and_slab_kl
from stochprune.functional.keep_mask import keep_mask
from stochprune.functional.masked_linear import masked_linear

__all__ = ["bernoulli_kl", "gaussian_kl", "keep_mask", "masked_linear", "spike_and_slab_kl"]
