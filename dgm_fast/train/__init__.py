"""Training runs: a generic trainer with exact resume, and the model kinds it knows by name."""

from dgm_fast.train import (  # noqa: F401  (they register themselves)
    autoregressive_kinds,
    flow_kinds,
    gan_kinds,
    image_flow_kinds,
    latent_kinds,
    mixture_kinds,
    pixel_kinds,
    sequence_kinds,
)
from dgm_fast.train.adversarial_step import AdversarialStep
from dgm_fast.train.batches import BatchOrder
from dgm_fast.train.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from dgm_fast.train.config import ConfigError, TrainConfig
from dgm_fast.train.interrupt import StopSignals, TrainingInterrupted
from dgm_fast.train.registry import ModelKind, get_kind, kind_names, register
from dgm_fast.train.run_directory import RunDirectory, RunDirectoryError
from dgm_fast.train.step import LossStep, TrainStep
from dgm_fast.train.trainer import FitResult, Trainer, TrainingDiverged

__all__ = [
    "AdversarialStep",
    "BatchOrder",
    "CheckpointError",
    "ConfigError",
    "FitResult",
    "LossStep",
    "ModelKind",
    "RunDirectory",
    "RunDirectoryError",
    "StopSignals",
    "TrainConfig",
    "TrainStep",
    "Trainer",
    "TrainingDiverged",
    "TrainingInterrupted",
    "get_kind",
    "kind_names",
    "load_checkpoint",
    "register",
    "save_checkpoint",
]
