"""Parts of a training loop: data, models, loaders, precision, checkpoints, evaluation, run folders."""

from optland.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from optland.train.compare import CompareConfig, ComparedRunConfig, Comparison
from optland.train.data import DataConfig, ImageData, load_data
from optland.train.dataset_loader import DatasetLoader
from optland.train.ema import Ema
from optland.train.evaluate import History, evaluate
from optland.train.grouped_loader import GroupedLoader
from optland.train.interrupt import RESUMABLE, GracefulStop
from optland.train.loader import BatchLoader
from optland.train.models import ModelConfig, build_model
from optland.train.models.build import check_model
from optland.train.precision import Precision, PrecisionConfig
from optland.train.run import RunFolder
from optland.train.schedule import ScheduleName, check_schedule, cosine_schedule, schedule_by_name
from optland.train.seed_differences import best_setting, paired_gain
from optland.train.seeding import seed_everything
from optland.train.settings import (
    LogConfig,
    OptimizerConfig,
    PilotConfig,
    RunConfig,
    ValidatedRunConfig,
    choose_device,
)
from optland.train.summary import summarise
from optland.train.text import TextConfig, TextData, TextHistory, load_text, summarise_text
from optland.train.trained_run import probe_objective
from optland.train.transformer import TransformerConfig
from optland.train.weights import Weights, save_weights

__all__ = [
    "RESUMABLE",
    "BatchLoader",
    "Checkpoint",
    "CheckpointError",
    "CompareConfig",
    "ComparedRunConfig",
    "Comparison",
    "DataConfig",
    "DatasetLoader",
    "Ema",
    "GracefulStop",
    "GroupedLoader",
    "History",
    "ImageData",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PilotConfig",
    "Precision",
    "PrecisionConfig",
    "RunConfig",
    "RunFolder",
    "ScheduleName",
    "TextConfig",
    "TextData",
    "TextHistory",
    "TransformerConfig",
    "ValidatedRunConfig",
    "Weights",
    "best_setting",
    "build_model",
    "check_model",
    "check_schedule",
    "choose_device",
    "cosine_schedule",
    "evaluate",
    "load_checkpoint",
    "load_data",
    "load_text",
    "paired_gain",
    "probe_objective",
    "save_checkpoint",
    "save_weights",
    "schedule_by_name",
    "seed_everything",
    "summarise",
    "summarise_text",
]
