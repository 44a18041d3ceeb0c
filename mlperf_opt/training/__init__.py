"""Training: differentiation of a graph, optimizers, the loop, checkpoints."""

from mlperf_opt.training.autodiff import arguments, backward, gradients
from mlperf_opt.training.loop import TrainResult, TrainSettings, check_trainable, train
from mlperf_opt.training.objective import CROSS_ENTROPY, Distillation, Objective
from mlperf_opt.training.optimizers import SGD, Adam, Optimizer, clip_by_global_norm
from mlperf_opt.training.projection import Free, Frozen, Projection
from mlperf_opt.training.reports import EpochReport, StepReport
from mlperf_opt.training.schedules import cosine

__all__ = [
    "CROSS_ENTROPY",
    "SGD",
    "Adam",
    "Distillation",
    "EpochReport",
    "Free",
    "Frozen",
    "Objective",
    "Optimizer",
    "Projection",
    "StepReport",
    "TrainResult",
    "TrainSettings",
    "arguments",
    "backward",
    "check_trainable",
    "clip_by_global_norm",
    "cosine",
    "gradients",
    "train",
]
