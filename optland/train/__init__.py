"""What a training loop is made of: the pilot, data, models, a loader, checkpoints, evaluation, run folders."""

from optland.train.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from optland.train.data import DataConfig, ImageData, load_data
from optland.train.evaluate import History, evaluate
from optland.train.loader import BatchLoader
from optland.train.models import ModelConfig, build_model
from optland.train.pilot import Pilot
from optland.train.run import RunFolder
from optland.train.schedule import cosine_schedule
from optland.train.seeding import seed_everything
from optland.train.settings import LogConfig, OptimizerConfig, PilotConfig
from optland.train.summary import summarise

__all__ = [
    "BatchLoader",
    "Checkpoint",
    "CheckpointError",
    "DataConfig",
    "History",
    "ImageData",
    "LogConfig",
    "ModelConfig",
    "OptimizerConfig",
    "Pilot",
    "PilotConfig",
    "RunFolder",
    "build_model",
    "cosine_schedule",
    "evaluate",
    "load_checkpoint",
    "load_data",
    "save_checkpoint",
    "seed_everything",
    "summarise",
]
