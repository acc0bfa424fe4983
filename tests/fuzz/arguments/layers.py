"""Arguments of ``stochprune.nn``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

import stochprune as sp
from stochprune.nn import registry
from tests.fuzz.arguments.objects import dense, inputs, masked, masks, names, without

# Made from a dense module alone.
MASKED_MODULES = [*sorted(kind.__name__ for kind in registry.MODULES), "MaskedModule"]


def arguments() -> dict[str, Callable[[], dict[str, Any]]]:
    options = {"keep": 0.9, "estimator": "straight_through", "temperature": 1.0, "seed": 0, "stream": 3}
    wide = {"in_features": 8, "out_features": 4, "bias": True, **options}
    adapter = {"rank": 2, "alpha": 4.0, "dropout": 0.1}
    window = {"in_channels": 4, "out_channels": 4, "kernel_size": 2, "stride": 1, "padding": 0, **options}
    shape = {"num_embeddings": 5, "embedding_dim": 4, "padding_idx": 0, **options}
    kinds = [f"{kind}{n}d" for kind in ("MaskedConv", "MaskedConvTranspose", "FilterMaskedConv") for n in (1, 2, 3)]
    return {
        **{f"nn.{kind}": lambda: dict(window) for kind in kinds},
        "nn.MaskedLinear": lambda: dict(wide),
        "nn.MaskedTransposedLinear": lambda: {"nf": 4, "nx": 8, **options},
        "nn.NMMaskedTransposedLinear": lambda: {"nf": 4, "nx": 8, "pattern": "2:4"},
        "nn.MaskedEmbedding": lambda: dict(shape),
        **{f"nn.{name}": lambda: dict(options) for name in MASKED_MODULES},
        "nn.register": lambda: {"dense_type": nn.Linear, "masked_type": sp.nn.MaskedLinear},
        "nn.NMMaskedLinear": lambda: without(wide | {"pattern": "2:4"}, "estimator", "temperature", "keep"),
        "nn.MaskedLoRALinear": lambda: wide | adapter,
        "nn.SparseLoRALinear": lambda: {"linear": sp.models.mlp((6, 5), seed=0).fc1, **adapter, "seed": 0, "stream": 3},
        "nn.add_lora": lambda: {"model": dense(), **adapter, "include": None, "exclude": None, "seed": 0, "name": ""},
        "nn.merge_lora": lambda: {"model": sp.nn.add_lora(dense(), 2)},
        "nn.InputDependentMask": lambda: {"layer": sp.models.mlp((6, 5), seed=0).fc1, "hidden": 3, **options},
        "nn.mask_units_by_input": lambda: {"model": dense(), "include": "*", "hidden": 3, "keep": 0.9, "seed": 0},
        "nn.StructuredMaskedLinear": lambda: wide | {"structure": "rows"},
        "nn.GatedBranch": lambda: {"branch": sp.models.mlp((6, 6), seed=0), "keep": 0.9},
        "nn.masked_layers": lambda: {"model": masked()},
        "nn.antithetic_gradients": lambda: {
            "model": masked(),
            "loss": lambda model: model(inputs()).sum(),
            "draw": 0,
            "estimator": "disarm",
        },
        "nn.convert": lambda: {
            "model": dense(),
            "masks": masks(),
            "keep_kept": 0.95,
            "keep_pruned": 0.05,
            "include": None,
            "exclude": None,
            "pattern": None,
            "allow_subclasses": False,
            "seed": 0,
        },
        "nn.harden": lambda: {"model": masked(), "sparsity": 0.25, "scope": "global"},
        "nn.gate_branches": lambda: {"model": dense(), "names": "1", "keep": 0.9, "seed": 0},
        "nn.drop_branches": lambda: {"model": sp.nn.gate_branches(dense(), "1", 0.9)},
        "nn.expected_cost": lambda: {"model": sp.nn.gate_branches(dense(), "1", 0.9), "costs": {"1": 1.0}},
        "nn.layer_kl": lambda: {"model": masked(), "prior_logits": dict.fromkeys(names(), 0.0)},
        "nn.batched_samples": lambda: {"model": masked(), "draws": 2},
        "nn.fused_masking": lambda: {"model": masked()},
        "nn.without_masks": lambda: {"model": masked()},
        "nn.sampling": lambda: {"model": masked(), "enabled": True},
        "nn.semi_structured": lambda: {"model": dense()},
        "nn.SparseLinear": lambda: {"in_features": 4, "out_features": 3, "bias": True},
        "nn.sparsify": lambda: {"model": dense()},
        "shrink": lambda: {"model": dense(), "example_inputs": inputs(2)},
        "save_sparse": lambda: {"model": dense(), "path": Path("model.safetensors")},
        "load_sparse": lambda: {"path": Path("model.safetensors"), "model": dense()},
    }
