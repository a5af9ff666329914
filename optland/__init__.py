"""optland: train PyTorch models with the loss landscape in view."""

__version__ = "0.0.1"
