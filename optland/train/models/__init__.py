"""Image models by name, with any depth, width, normalisation and initialisation, so that nets can be compared."""

from optland.train.models.build import build_model
from optland.train.models.config import ModelConfig
from optland.train.models.initialisation import INITIALISATIONS, initialise
from optland.train.models.registry import MODELS, Architecture

__all__ = ["INITIALISATIONS", "MODELS", "Architecture", "ModelConfig", "build_model", "initialise"]
