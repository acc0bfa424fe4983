"""The trainers: one loop with callbacks and checkpoints, under mask fine-tuning and weight training alike."""

from stochprune.training.checkpoint import CheckpointError
from stochprune.training.config import FinetuneConfig, WeightConfig
from stochprune.training.evaluate import StochasticError, error, predict, stochastic_error
from stochprune.training.finetune import FinetuneResult, finetune
from stochprune.training.progress import ProgressBar
from stochprune.training.weights import train_weights

__all__ = [
    "CheckpointError",
    "FinetuneConfig",
    "FinetuneResult",
    "ProgressBar",
    "StochasticError",
    "WeightConfig",
    "error",
    "finetune",
    "predict",
    "stochastic_error",
    "train_weights",
]
