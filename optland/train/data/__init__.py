"""Image data sets as tensors in memory: train, clean validation and test splits, label noise with its seed.

The embedded default is scikit-learn's digits (Alpaydin and Kaynak 1998, 1797 images of 8 x 8 pixels), which needs no
download. Official test splits stay test; a validation split is carved from the training samples. Validation and test
labels are always clean: label noise is put into the training split alone, so early stopping on the validation split
is an honest competitor.
"""

from optland.train.data.config import DataConfig
from optland.train.data.images import ImageData
from optland.train.data.load import load_data

__all__ = ["DataConfig", "ImageData", "load_data"]
