"""Drop-in layers under stochastic masks, and the conversions of whole models to them and back."""

from stochprune.nn.convert import convert, harden
from stochprune.nn.kl import layer_kl
from stochprune.nn.layer import masked_layers, sampling
from stochprune.nn.masked_linear import MaskedLinear

__all__ = ["MaskedLinear", "convert", "harden", "layer_kl", "masked_layers", "sampling"]
