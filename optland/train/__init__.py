"""Parts of a training loop: data, models, loaders, precision, checkpoints, evaluation, run folders."""

from optland.train.data import DataConfig, ImageData, load_data
from optland.train.data.text import TextConfig, TextData, TextHistory, load_text, summarise_text
from optland.train.experiments.compare import CompareConfig, ComparedRunConfig, Comparison
from optland.train.experiments.seed_differences import best_setting, paired_gain
from optland.train.loops.dataset_loader import DatasetLoader
from optland.train.loops.ema import Ema
from optland.train.loops.evaluate import History, evaluate
from optland.train.loops.grouped_loader import GroupedLoader
from optland.train.loops.loader import BatchLoader
from optland.train.loops.precision import Precision, PrecisionConfig
from optland.train.loops.schedule import ScheduleName, check_schedule, cosine_schedule, schedule_by_name
from optland.train.loops.seeding import seed_everything
from optland.train.models import ModelConfig, build_model
from optland.train.models.build import check_model
from optland.train.models.transformer import TransformerConfig
from optland.train.runs.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from optland.train.runs.interrupt import RESUMABLE, GracefulStop
from optland.train.runs.run import RunFolder
from optland.train.runs.settings import (
    LogConfig,
    OptimizerConfig,
    PilotConfig,
    RunConfig,
    ValidatedRunConfig,
    choose_device,
)
from optland.train.runs.summary import summarise
from optland.train.runs.trained_run import probe_objective
from optland.train.runs.weights import Weights, save_weights

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
