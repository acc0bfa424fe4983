"""The ops: argument checks at the edge, then ``torch.library`` operators with autograd, fake and vmap rules."""

from stochprune.functional.keep_mask import keep_mask
from stochprune.functional.masked_linear import masked_linear

__all__ = ["keep_mask", "masked_linear"]
