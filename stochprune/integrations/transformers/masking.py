"""get_masked_model and merge_and_unload: a live model of transformers becomes a masked one, and a plain one again."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from stochprune.arguments import checked
from stochprune.extras import extra
from stochprune.integrations.transformers.config import CALIBRATED, MaskConfig
from stochprune.integrations.transformers.experts import register_modules
from stochprune.integrations.transformers.layers import mask_layers, set_trainable
from stochprune.integrations.transformers.quantizer import MaskQuantizer, attach, detach
from stochprune.integrations.transformers.start import (
    Batches,
    calibrated_scores,
    check_start,
    initial_scores,
    set_start,
)
from stochprune.nn.add_lora import merge_lora, updated_layers
from stochprune.nn.harden import harden
from stochprune.nn.members import masked_layers
from stochprune.nn.restored import restored_on_error

with extra("hf", "stochprune.integrations.transformers"):
    from transformers import PreTrainedModel


@checked
def get_masked_model(
    model: PreTrainedModel,
    config: MaskConfig | None = None,
    *,
    calibration: Batches | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Mask a model of transformers in place, and return it; ``save_pretrained`` then stores its masks too.

    Args:
        model: a dense model. Its weights stay where they are, without copies.
        config: what is masked, and from which start; default: ``MaskConfig()``.
        calibration: for the starts wanda, sparsegpt and admm: input ids int64 [B, T], or dictionaries with
            ``input_ids`` or ``pixel_values``, without padding; for a model with an encoder and a decoder also with
            ``decoder_input_ids`` or ``labels``. For snip, input ids of a causal model, or dictionaries with ``labels``
            for which the model returns its loss. A list, or another iterable that is read once.
        start: in place of ``config.initial``, any score by weight name, of the weights' shapes, higher means keep.

    Returns:
        The model. In training mode it samples masks; in evaluation mode it keeps the weights whose probability is at
        least one half. With ``mode="frozen"`` only logits require a gradient.

    Raises:
        TypeError: not a model of transformers (:func:`stochprune.convert` masks others).
        ValueError: the model is masked already; the start needs calibration; a score is missing; a layer that the
            configuration chooses cannot be masked. The model is then as before.
    """
    config = MaskConfig() if config is None else config
    if masked_layers(model):
        raise ValueError(f"get_masked_model: {type(model).__name__} is masked already: call merge_and_unload first")
    check_start("get_masked_model", config, calibrated=calibration is not None or start is not None)
    register_modules(model)
    if start is None and calibration is not None and config.starts_pruned and config.initial in CALIBRATED:
        start = calibrated_scores(model, config, calibration)
    with restored_on_error(model):
        mask_layers(model, config)
        if start is not None or config.starts_pruned:
            set_start(model, config, initial_scores(model, config) if start is None else start)
    set_trainable(model, config)
    return attach(model, MaskQuantizer(config, pre_quantized=False))


@checked
def merge_and_unload(model: PreTrainedModel, sparsity: float | None = None, scope: str = "global") -> PreTrainedModel:
    """Make a masked model plain again, in place: pruned weights are exactly 0, and nothing of stochprune is left.

    Low-rank updates of :func:`stochprune.nn.add_lora` are merged.

    Args:
        model: from ``from_pretrained`` with a :class:`MaskConfig`, or from :func:`get_masked_model`. It may be hardened
            already.
        sparsity, scope: as in :func:`stochprune.harden`; default: prune what evaluation mode prunes.

    Returns:
        The model, with weights of the same dtype. Those that were frozen stay so: call ``model.requires_grad_()``
        before training them.

    Raises:
        ValueError: the model is not masked, or is hardened already and a sparsity is given; and the errors of
            :func:`stochprune.harden`.
    """
    if masked_layers(model):
        harden(model, sparsity, scope)
    elif not isinstance(getattr(model, "hf_quantizer", None), MaskQuantizer):
        raise ValueError(f"merge_and_unload: {type(model).__name__} is not masked: get_masked_model masks it")
    elif sparsity is not None:
        raise ValueError(
            f"merge_and_unload: {type(model).__name__} is hardened already: give no sparsity, got {sparsity}"
        )
    if updated_layers(model):  # of layers without a learnt mask; harden merges the others
        merge_lora(model)
    return detach(model)
