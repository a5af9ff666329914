"""Image models by name, with any depth, width, normalisation and initialisation, so that nets can be compared."""

from optland.train.models.build import build_model
from optland.train.models.config import ModelConfig

__all__ = ["ModelConfig", "build_model"]
