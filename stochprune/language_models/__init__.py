"""Language models: text, small models of it, their losses, their pruning and its export (extra: hf)."""

from stochprune.language_models.export import export
from stochprune.language_models.llama import LlamaShape, small_llama
from stochprune.language_models.loading import load_language_model
from stochprune.language_models.losses import distilled, next_token_loss, perplexity, token_loss
from stochprune.language_models.macko import MackoMatrix, export_macko, macko_compress, macko_decompress
from stochprune.language_models.text import Passages, TextData, read_text, text_data, train_tokenizer

__all__ = [
    "LlamaShape",
    "MackoMatrix",
    "Passages",
    "TextData",
    "distilled",
    "export",
    "export_macko",
    "load_language_model",
    "macko_compress",
    "macko_decompress",
    "next_token_loss",
    "perplexity",
    "read_text",
    "small_llama",
    "text_data",
    "token_loss",
    "train_tokenizer",
]
