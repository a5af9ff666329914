"""Image models by name, with any depth, width, normalisation and initialisation, so that nets can be compared."""

from optland.train.models.build import build_model
from optland.train.models.config import ModelConfig
from optland.train.models.initialisation import INITIALISATIONS, initialise
from optland.train.models.registry import MODELS

__all__ = ["INITIALISATIONS", "MODELS", "ModelConfig", "build_model", "initialise"]
