"""Parts of a training loop: data, models, loaders, precision, checkpoints, evaluation, run folders."""

from optland.train.data import DataConfig, ImageData, load_data
from optland.train.data.text import TextConfig, TextData, TextHistory, load_text, summarise_text
from optland.train.experiments.compare import ComparedRunConfig, Comparison
from optland.train.loops.dataset_loader import DatasetLoader
from optland.train.loops.evaluate import History, evaluate
from optland.train.loops.grouped_loader import GroupedLoader
from optland.train.loops.loader import BatchLoader
from optland.train.loops.precision import PrecisionConfig
from optland.train.loops.schedule import ScheduleName, schedule_by_name
from optland.train.loops.seeding import seed_everything
from optland.train.models import ModelConfig, build_model
from optland.train.models.build import check_model
from optland.train.models.transformer import TransformerConfig
from optland.train.runs.interrupt import GracefulStop
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
from optland.train.runs.weights import save_weights

__all__ = [
    "BatchLoader",
    "ComparedRunConfig",
    "Comparison",
    "DataConfig",
    "DatasetLoader",
    "GracefulStop",
    "GroupedLoader",
    "History",
    "ImageData",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PilotConfig",
    "PrecisionConfig",
    "RunConfig",
    "RunFolder",
    "ScheduleName",
    "TextConfig",
    "TextData",
    "TextHistory",
    "TransformerConfig",
    "ValidatedRunConfig",
    "build_model",
    "check_model",
    "choose_device",
    "evaluate",
    "load_data",
    "load_text",
    "probe_objective",
    "save_weights",
    "schedule_by_name",
    "seed_everything",
    "summarise",
    "summarise_text",
]
