"""Drop-in layers under stochastic masks, and the conversions of whole models to them and back."""

from stochprune.nn.add_lora import add_lora, merge_lora
from stochprune.nn.antithetic import antithetic_gradients
from stochprune.nn.batched_samples import batched_samples
from stochprune.nn.convert import convert
from stochprune.nn.deprecated import many_draws, one_launch
from stochprune.nn.fused_masking import fused_masking
from stochprune.nn.gated_branch import GatedBranch, drop_branches, expected_cost, gate_branches
from stochprune.nn.harden import harden
from stochprune.nn.input_masks import InputDependentMask, mask_units_by_input
from stochprune.nn.kl import layer_kl
from stochprune.nn.lora import MaskedLoRALinear, SparseLoRALinear
from stochprune.nn.masked_attention import MaskedMultiheadAttention
from stochprune.nn.masked_bilinear import MaskedBilinear
from stochprune.nn.masked_conv import (
    MaskedConv1d,
    MaskedConv2d,
    MaskedConv3d,
    MaskedConvTranspose1d,
    MaskedConvTranspose2d,
    MaskedConvTranspose3d,
)
from stochprune.nn.masked_embedding import MaskedEmbedding
from stochprune.nn.masked_linear import MaskedLinear
from stochprune.nn.masked_module import MaskedModule
from stochprune.nn.masked_recurrent import (
    MaskedGRU,
    MaskedGRUCell,
    MaskedLSTM,
    MaskedLSTMCell,
    MaskedRNN,
    MaskedRNNCell,
)
from stochprune.nn.masked_transposed import MaskedTransposedLinear
from stochprune.nn.members import masked_layers
from stochprune.nn.nm import NMMaskedLinear, NMMaskedTransposedLinear
from stochprune.nn.registry import register
from stochprune.nn.sampling import sampling
from stochprune.nn.semi_structured import semi_structured
from stochprune.nn.sparse_linear import SparseLinear
from stochprune.nn.sparsify import sparsify
from stochprune.nn.structured import (
    FilterMaskedConv1d,
    FilterMaskedConv2d,
    FilterMaskedConv3d,
    StructuredMaskedLinear,
)
from stochprune.nn.unmasked import UnmaskedWeightsWarning
from stochprune.nn.without_masks import without_masks

__all__ = [
    "FilterMaskedConv1d",
    "FilterMaskedConv2d",
    "FilterMaskedConv3d",
    "GatedBranch",
    "InputDependentMask",
    "MaskedBilinear",
    "MaskedConv1d",
    "MaskedConv2d",
    "MaskedConv3d",
    "MaskedConvTranspose1d",
    "MaskedConvTranspose2d",
    "MaskedConvTranspose3d",
    "MaskedEmbedding",
    "MaskedGRU",
    "MaskedGRUCell",
    "MaskedLSTM",
    "MaskedLSTMCell",
    "MaskedLinear",
    "MaskedLoRALinear",
    "MaskedModule",
    "MaskedMultiheadAttention",
    "MaskedRNN",
    "MaskedRNNCell",
    "MaskedTransposedLinear",
    "NMMaskedLinear",
    "NMMaskedTransposedLinear",
    "SparseLinear",
    "SparseLoRALinear",
    "StructuredMaskedLinear",
    "UnmaskedWeightsWarning",
    "add_lora",
    "antithetic_gradients",
    "batched_samples",
    "convert",
    "drop_branches",
    "expected_cost",
    "fused_masking",
    "gate_branches",
    "harden",
    "layer_kl",
    "many_draws",
    "mask_units_by_input",
    "masked_layers",
    "merge_lora",
    "one_launch",
    "register",
    "sampling",
    "semi_structured",
    "sparsify",
    "without_masks",
]
