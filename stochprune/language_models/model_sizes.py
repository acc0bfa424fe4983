"""Sizes of language models of transformers for a memory plan, from a configuration alone: no weights are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from stochprune.extras import extra
from stochprune.language_models.loading import refuse_hub_kernels
from stochprune.nn.registry import masked_type
from stochprune.training.activations import activation_bytes, checkpoint_blocks, saved_bytes
from stochprune.training.memory_plan import MemoryConfig

MOST_LAYERS = 2000
"""A configuration may come from anybody; each layer takes milliseconds."""


class LanguageModelSizes:
    """Sizes of a causal language model: see :class:`stochprune.training.memory_plan.ModelSizes`.

    Masked are the weights of all linear layers but the output layer, and the experts of a mixture. Activations are
    counted, not estimated: a forward pass runs on tensors without values, and the tensors that it saves for backward
    are added up.

    Args:
        path: the folder of a model, or its ``config.json``. Code from the folder is never run.

    Raises:
        ValueError: no configuration of a causal language model that transformers knows.
    """

    def __init__(self, path: str | Path) -> None:
        with extra("hf", "a memory plan"):
            from transformers import AutoConfig, AutoModelForCausalLM
        folder = Path(path)
        if not (folder / "config.json" if folder.is_dir() else folder).is_file():
            raise ValueError(f"MODEL must be a folder with a config.json, or that file, got {path}")
        refuse_hub_kernels(folder / "config.json" if folder.is_dir() else folder)
        self._from_config = AutoModelForCausalLM.from_config
        self._counted: dict[tuple[Any, ...], float] = {}
        try:
            self.config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            if (layers := self.config.get_text_config().num_hidden_layers) > MOST_LAYERS:
                raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}, got {layers}")
            with FakeTensorMode():
                model = self._model("bf16")
        except Exception as error:  # a wrong configuration raises errors of many types
            raise ValueError(f"{path}: transformers cannot build a causal language model of it: {error}") from error
        masked = _masked(model)
        parameters = {name: p for name, p in model.named_parameters() if name not in masked}
        self.masked = tuple(shape for p in masked.values() for shape in _matrices(p))
        self.other = sum(p.numel() for p in parameters.values())
        self.largest_other = max((p.numel() for p in parameters.values()), default=0)
        self.blocks, self.width = layers, self.config.get_text_config().hidden_size
        if not self.masked:
            raise ValueError(f"{path}: the model {type(model).__name__} has no linear layer to mask")

    def _model(self, dtype: str) -> Any:
        return self._from_config(self.config, dtype=torch.float32 if dtype == "fp32" else torch.bfloat16)

    def activations(self, config: MemoryConfig) -> float:
        """Return the bytes that a forward pass saves for backward, and the gradient of the output's logits."""
        shape = (config.batch_size, config.sequence)
        kind = "fp32" if config.weights == "fp32" else "bf16"
        joint = config.mode == "joint"
        tokens, output = config.batch_size * config.sequence, self.config.get_text_config()

        def saved(checkpointing: bool) -> float:
            return self._saved(shape, kind, joint, checkpointing)

        return activation_bytes(saved, output, tokens, checkpointing=config.checkpointing, wide=config.wide)

    def _saved(self, *case: Any) -> float:
        if case not in self._counted:
            self._counted[case] = self._count(*case)
        return self._counted[case]

    def _count(self, shape: tuple[int, int], dtype: str, joint: bool, checkpointing: bool) -> float:
        """Return the bytes of the distinct storages that a forward pass saves, without those of parameters.

        With checkpointing, those outside of the blocks.
        """
        with FakeTensorMode():
            model = self._model(dtype)
            model.requires_grad_(joint)
            for p in _masked(model).values():
                p.requires_grad_()  # the layer then saves its input, as a masked layer does
            model.train()
            if checkpointing:
                checkpoint_blocks(model)
            tokens = torch.zeros(shape, dtype=torch.int64)
            return saved_bytes(
                lambda: model(input_ids=tokens, labels=tokens, use_cache=False), [*model.parameters(), *model.buffers()]
            )


def _masked(model: Any) -> dict[str, nn.Parameter]:
    """Return the weights that masks are for: of linear layers and of experts, without what embeddings share."""
    modules: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    apart = {p for module in modules if module is not None for p in module.parameters()}
    found = {}
    for name, module in model.named_modules():
        linear = masked_type(module) is not None and not isinstance(module, nn.Embedding)
        for key, p in module.named_parameters(recurse=False):
            if p not in apart and p.is_floating_point() and ((linear and p.dim() >= 2) or p.dim() == 3):
                found[f"{name}.{key}"] = p
    return found


def _matrices(weight: Tensor) -> list[tuple[int, int]]:
    """Return rows and columns of a weight as its masks count them; each expert of a mixture is a matrix of its own."""
    if weight.dim() == 3:
        return [(weight.shape[1], weight.shape[2])] * weight.shape[0]
    return [(weight.shape[0], weight[0].numel())]
