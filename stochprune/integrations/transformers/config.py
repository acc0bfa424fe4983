"""MaskConfig: how a model of transformers is masked. It is stored in the model's config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from stochprune import patterns
from stochprune.arguments import check_fields, shown
from stochprune.extras import extra
from stochprune.functional._address import check_estimator
from stochprune.masks.select import check_cut
from stochprune.nn.lora import check_adapter
from stochprune.rng import check_address

with extra("hf", "stochprune.integrations.transformers"):
    from transformers.quantizers.auto import register_quantization_config
    from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "stochprune"
PATTERNS = ("unstructured", "rows", "columns", "heads", "experts")
CALIBRATED = ("wanda", "sparsegpt", "admm", "snip")
"""The starts that need calibration batches."""

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes of logits, by their names in safetensors."""

LIMIT, LONGEST, MOST = 10_000, 256, 500
"""Bounds of name patterns, because a config.json may come from anybody: their characters together, those of one, and
their number. With them the choice of layers takes well below a second."""


@register_quantization_config(METHOD)
@dataclass
class MaskConfig(QuantizationConfigMixin):
    """The masks of a model; ``from_pretrained(folder, quantization_config=MaskConfig())`` returns a masked model.

    By default the body of a model is masked: the linear and convolutional layers and the experts of its base model.
    Embeddings, the output layer, every weight tied to one of them, and a head outside the base model stay dense.

    Attributes:
        pattern: ``"unstructured"``; ``"2:4"`` and other n:m; ``"rows"``, ``"columns"`` or blocks such as ``"16x16"``,
            as in :func:`stochprune.convert`; ``"heads"``, whole heads of attention, as columns of its output
            projection; ``"experts"``, whole experts of a mixture.
        sparsity: the fraction of weights (rows, blocks, heads, experts) that the initial mask prunes, in [0, 1). None:
            that of n:m; with other patterns all weights start with ``keep_kept``.
        initial: the score of the initial mask. ``"magnitude"`` and ``"random"`` work while a model is loaded;
            ``"wanda"``, ``"sparsegpt"``, ``"admm"`` (the mask of :func:`stochprune.scores.admm_prune`) and ``"snip"``
            need batches, see :func:`get_masked_model`. ``"none"``: no initial mask.
        scope: which weights compete in the initial mask, see :func:`stochprune.masks.from_scores`. Wanda's paper has
            ``"row"``.
        keep_kept, keep_pruned: the initial probabilities of keeping what the mask keeps and prunes, in (0, 1).
        targets, excludes: shell patterns on weight names (``"*.mlp.*"``). Targets replace the default choice; excluded
            weights stay dense. An empty list of targets masks nothing, for a pruned model with low-rank updates.
        logits_dtype: of the logits, whatever the model's dtype is.
        estimator, temperature: of the gradient of the logits, see :func:`stochprune.functional.masked_linear`.
        seed: of the masks, 0 .. 2^64 - 1.
        mode: ``"frozen"`` trains the logits alone; ``"joint"`` trains weights and logits.
        lora: the low-rank updates by weight name, each with ``rank``, ``alpha``, ``dropout`` and ``stream``.
            ``save_pretrained`` writes them for a model with updates of :func:`stochprune.nn.add_lora`.

    Raises:
        ValueError: a value of another type or outside its range; the message names the field and the value.
    """

    quant_method: str = field(default=METHOD, init=False)
    pattern: str = "unstructured"
    sparsity: float | None = None
    initial: Literal["magnitude", "random", "wanda", "sparsegpt", "admm", "snip", "none"] = "magnitude"
    scope: Literal["global", "layer", "row"] = "layer"
    keep_kept: float = 0.95
    keep_pruned: float = 0.05
    targets: list[str] | None = None
    excludes: list[str] | None = None
    logits_dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    estimator: str = "straight_through"
    temperature: float = 1.0
    seed: int = 0
    mode: Literal["frozen", "joint"] = "frozen"
    lora: dict[str, dict[str, int | float]] | None = None

    def __post_init__(self) -> None:
        self.quant_method = METHOD  # in __dict__, which to_dict() returns
        check_fields(self)
        for name in ("keep_kept", "keep_pruned"):
            keep = getattr(self, name)
            if not 0 < float(torch.tensor(keep, dtype=torch.float32)) < 1:  # as layers take it
                raise ValueError(f"MaskConfig: {name} must lie strictly between 0 and 1 in float32, got {keep}")
        check_address("MaskConfig", seed=self.seed)
        check_estimator("MaskConfig", self.estimator, self.temperature)
        _check_pattern(self.pattern)
        if self.n_of_m is None:
            check_cut("MaskConfig", self.sparsity or 0.0, self.scope)
        elif self.sparsity is not None and not math.isclose(self.sparsity, 1 - self.n_of_m[0] / self.n_of_m[1]):
            raise ValueError(f"MaskConfig: sparsity of {self.pattern} is fixed: leave it out, got {self.sparsity}")
        elif self.estimator != "straight_through":
            raise ValueError(f"MaskConfig: {self.pattern} needs estimator straight_through, got {self.estimator}")
        for name in ("targets", "excludes"):
            sizes = [len(pattern) for pattern in getattr(self, name) or []]
            if len(sizes) > MOST or sum(sizes) > LIMIT or max(sizes, default=0) > LONGEST:
                raise ValueError(
                    f"MaskConfig: {name} must be at most {MOST} patterns of at most {LONGEST} characters, and at most "
                    f"{LIMIT} characters in all, got {len(sizes)} of at most {max(sizes)}, {sum(sizes)} in all"
                )
        for name, update in (self.lora or {}).items():
            _check_update(name, update)

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """n and m of the pattern n:m; None for other patterns."""
        return patterns.parse(self.pattern, "MaskConfig") if ":" in self.pattern else None

    @property
    def structure(self) -> str | None:
        """The argument ``pattern`` of :func:`stochprune.convert`; None for single weights, heads and experts."""
        return None if self.pattern in ("unstructured", "heads", "experts") else self.pattern

    @property
    def starts_pruned(self) -> bool:
        """True if an initial mask prunes weights."""
        return self.initial != "none" and self.targets != [] and (self.n_of_m is not None or bool(self.sparsity))

    @property
    def torch_logits_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.logits_dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Return the configuration of a dictionary, as ``config.json`` holds it; see the base class.

        Raises:
            ValueError: an unknown field, another method, or a value that the constructor refuses.
        """
        given = dict(config_dict)
        if (method := given.pop("quant_method", METHOD)) != METHOD:
            raise ValueError(f"MaskConfig: quant_method must be {METHOD!r}, got {shown(method)}")
        known = [field.name for field in fields(cls) if field.init]
        if unknown := sorted(map(str, set(given) - set(known))):
            raise ValueError(f"MaskConfig: unknown field {shown(unknown[0])}; known are: {', '.join(known)}")
        return super().from_dict(given, return_unused_kwargs, **kwargs)


def _check_update(name: str, update: Mapping[str, Any]) -> None:
    if set(update) != {"rank", "alpha", "dropout", "stream"}:
        raise ValueError(f"MaskConfig: lora of {shown(name)} must have rank, alpha, dropout and stream")
    try:
        check_adapter("MaskConfig: lora", update["rank"], update["alpha"], update["dropout"])
    except TypeError as error:
        raise ValueError(str(error)) from error
    check_address("MaskConfig: lora", stream=update["stream"])


def _check_pattern(pattern: str) -> None:
    rows, x, columns = pattern.partition("x")
    short = len(pattern) < 32
    blocks = x and rows.isdecimal() and columns.isdecimal()
    if ":" in pattern and short:
        n, m = patterns.parse(pattern, "MaskConfig")
        patterns.check("MaskConfig", n, m, columns=0)
    elif not (blocks and short) and pattern not in PATTERNS:
        raise ValueError(
            f"MaskConfig: pattern must be one of {', '.join(PATTERNS)}, n:m such as 2:4, or blocks such as 16x16, got "
            f"{shown(pattern)}"
        )
