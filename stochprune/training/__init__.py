"""The trainers. Mask fine-tuning and weight training use the same loop, with callbacks and checkpoints."""

from stochprune.runs.files import CheckpointError
from stochprune.runs.progress import ProgressBar
from stochprune.training.activation_pruning import ActivationPruningConfig, activation_pruning
from stochprune.training.adamw import MaskedAdamW
from stochprune.training.admm import ADMMConfig
from stochprune.training.annealing import PriorStrength, Sparsity, Temperature
from stochprune.training.budget import Budget
from stochprune.training.config import FinetuneConfig, WeightConfig
from stochprune.training.continuous_sparsification import ContinuousSparsificationConfig
from stochprune.training.distillation import distillation_loss
from stochprune.training.early_pruning import PruneEarly, early_pruning_indicator
from stochprune.training.edge_popup import EdgePopupConfig
from stochprune.training.evaluate import StochasticError, error, predict, stochastic_error
from stochprune.training.finetune import FinetuneResult, finetune
from stochprune.training.flips import StuckMaskWarning
from stochprune.training.frozen_probabilities import FrozenProbabilitiesConfig
from stochprune.training.gradual_magnitude import GradualMagnitudeConfig
from stochprune.training.groups import parameter_groups
from stochprune.training.hard_concrete import HardConcreteConfig
from stochprune.training.imp import IMPConfig, IMPRound, imp
from stochprune.training.in_backward import StepInBackward, step_in_backward
from stochprune.training.loggers import CSVLogger, TensorBoard
from stochprune.training.mask_loss import mask_loss
from stochprune.training.maskllm import MaskLLMConfig
from stochprune.training.methods import (
    IterativeMagnitudeConfig,
    MaskFinetuningConfig,
    SoftThresholdPruningConfig,
    prune,
)
from stochprune.training.movement import MovementConfig
from stochprune.training.observers import EMA, EarlyStopping, Validation
from stochprune.training.one_shot import LayerWiseConfig, OneShotConfig
from stochprune.training.options import LoopOptions
from stochprune.training.prune_finetune import prune_finetune
from stochprune.training.pruning import Pruned
from stochprune.training.rigl import RigLConfig
from stochprune.training.shedding import WeightShedding
from stochprune.training.soft_threshold import SoftThresholdConfig, soft_threshold, train_soft_threshold
from stochprune.training.soft_threshold_reparameterisation import STRConfig
from stochprune.training.stochastic_rounding import StochasticRounding
from stochprune.training.supermask import SupermaskConfig
from stochprune.training.weights import train_weights

__all__ = [
    "EMA",
    "ADMMConfig",
    "ActivationPruningConfig",
    "Budget",
    "CSVLogger",
    "CheckpointError",
    "ContinuousSparsificationConfig",
    "EarlyStopping",
    "EdgePopupConfig",
    "FinetuneConfig",
    "FinetuneResult",
    "FrozenProbabilitiesConfig",
    "GradualMagnitudeConfig",
    "HardConcreteConfig",
    "IMPConfig",
    "IMPRound",
    "IterativeMagnitudeConfig",
    "LayerWiseConfig",
    "LoopOptions",
    "MaskFinetuningConfig",
    "MaskLLMConfig",
    "MaskedAdamW",
    "MovementConfig",
    "OneShotConfig",
    "PriorStrength",
    "ProgressBar",
    "PruneEarly",
    "Pruned",
    "RigLConfig",
    "STRConfig",
    "SoftThresholdConfig",
    "SoftThresholdPruningConfig",
    "Sparsity",
    "StepInBackward",
    "StochasticError",
    "StochasticRounding",
    "StuckMaskWarning",
    "SupermaskConfig",
    "Temperature",
    "TensorBoard",
    "Validation",
    "WeightConfig",
    "WeightShedding",
    "activation_pruning",
    "distillation_loss",
    "early_pruning_indicator",
    "error",
    "finetune",
    "imp",
    "mask_loss",
    "parameter_groups",
    "predict",
    "prune",
    "prune_finetune",
    "soft_threshold",
    "step_in_backward",
    "stochastic_error",
    "train_soft_threshold",
    "train_weights",
]
