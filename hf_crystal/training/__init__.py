"""Training of property models: recipes, the Trainer and its parts."""

from hf_crystal.training.arguments import CrystalTrainingArguments, DataArguments, TargetArguments
from hf_crystal.training.data_order import EpochBatchSampler, EpochShuffleSampler
from hf_crystal.training.metrics import make_compute_metrics
from hf_crystal.training.optimizers import (
    RELEASE_BIAS_WEIGHT_DECAY,
    InverseSqrtSchedule,
    build_optimizer,
    parameter_groups,
)
from hf_crystal.training.property_recipe import TrainingRecipe, load_recipe
from hf_crystal.training.run_control import last_complete_checkpoint
from hf_crystal.training.target_scaling import TargetScaling, compute_target_scaling
from hf_crystal.training.trainer import CrystalTrainer, calibrate_model
from hf_crystal.training.weight_averaging import AveragedWeights, SWACallback

__all__ = [
    "RELEASE_BIAS_WEIGHT_DECAY",
    "AveragedWeights",
    "CrystalTrainer",
    "CrystalTrainingArguments",
    "DataArguments",
    "EpochBatchSampler",
    "EpochShuffleSampler",
    "InverseSqrtSchedule",
    "SWACallback",
    "TargetArguments",
    "TargetScaling",
    "TrainingRecipe",
    "build_optimizer",
    "calibrate_model",
    "compute_target_scaling",
    "last_complete_checkpoint",
    "load_recipe",
    "make_compute_metrics",
    "parameter_groups",
]
