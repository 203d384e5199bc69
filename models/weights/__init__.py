"""Weights from files: read them, give them our names, and load them, also for other classes or image sizes."""

from models.weights.files import read_file
from models.weights.finetune import fitted, load_resized, start_from
from models.weights.loading import has_average, load_weights, read_weights, weights_in

__all__ = [
    "fitted",
    "has_average",
    "load_resized",
    "load_weights",
    "read_file",
    "read_weights",
    "start_from",
    "weights_in",
]
