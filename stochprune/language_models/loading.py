"""load_language_model: a causal model of transformers and its tokeniser from a folder, with clear errors."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stochprune.arguments import checked, shown
from stochprune.extras import extra
from stochprune.nn.evaluation import same_modes

Problems = (OSError, ValueError, TypeError, KeyError, RuntimeError, AttributeError, ImportError)
"""The errors of transformers for files that it cannot read."""


@contextlib.contextmanager
def same_generator() -> Iterator[None]:
    """Leave torch's global generator as it was: constructors of transformers use it."""
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)


@checked
def load_language_model(folder: str | Path) -> tuple[Any, Any]:
    """Return the causal model of a folder, in float32 and evaluation mode, and its tokeniser.

    Nothing is downloaded, code in the folder is not run, and weights come from safetensors alone.

    Raises:
        MissingExtraError: transformers is not installed.
        ValueError: no folder, a file that is missing, truncated or of another model, or no tokeniser.
    """
    with extra("hf", "load_language_model"):
        from safetensors import SafetensorError
        from transformers import AutoModelForCausalLM, AutoTokenizer
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"load_language_model: {folder} is no folder of a model: it has no config.json")
    if not any(folder.glob("*.safetensors")):
        raise ValueError(f"load_language_model: {folder} has no .safetensors file: save the model with save_pretrained")
    refuse_hub_kernels(folder / "config.json")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        with same_generator():
            made: Any = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
    except (*Problems, SafetensorError) as error:
        raise ValueError(f"load_language_model: the model in {folder} cannot be read: {_line(error)}") from error
    model, report = made
    if strange := sorted(
        str(key) for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for key in report[kind]
    ):
        raise ValueError(
            f"load_language_model: the weights in {folder} are not those of the model in its config.json: "
            f"{', '.join(strange[:3])} and {max(0, len(strange) - 3)} others are missing, unknown or of another shape"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (*Problems, json.JSONDecodeError) as error:
        raise ValueError(
            f"load_language_model: {folder} has no tokeniser that can be read ({_line(error)}): save it there with "
            "tokenizer.save_pretrained"
        ) from error
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise ValueError(
            f"load_language_model: the tokeniser of {folder} knows {len(tokenizer)} tokens, but the model {size}: it "
            "is that of another model"
        )
    return model.eval(), tokenizer


@torch.no_grad()
def without_dropout(model: Any) -> nn.Module:
    """Switch off the dropout of a causal model, in place: it samples from torch's global generator, and cannot resume.

    Raises:
        ValueError: the model still samples in training mode.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    tokens = torch.arange(8)[None] % model.get_input_embeddings().num_embeddings
    with same_generator(), same_modes(model):
        first, second = (model.train()(tokens, use_cache=False).logits for _ in range(2))
    if not torch.equal(first, second):
        raise ValueError(
            f"finetune-lm: {type(model).__name__} samples noise in training mode: set its rates of dropout to 0 in "
            "config.json"
        )
    return model


def refuse_hub_kernels(config: Path) -> None:
    """Raise ``ValueError`` if a config.json names a kernel of the hub, which transformers would download and run."""
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # transformers says what is wrong with it
    parts = [content]
    while parts:
        part = parts.pop()
        for key, value in part.items() if isinstance(part, dict) else enumerate(part):
            if isinstance(value, dict | list):
                parts.append(value)
            elif str(key).endswith("_implementation") and "/" in str(value):
                raise ValueError(f"{config}: {key} {shown(value)} is code from the hub, which is not run: remove it")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
