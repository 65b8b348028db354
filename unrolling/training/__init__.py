"""Training and evaluation on real data: data sets, recipes, runs that go on after a kill, and the command ``unroll``."""

from .build import DECODERS, FrozenSegmenter, make_classifier, make_segmenter
from .checkpoint import load_training, read_training, save_training
from .data import DATA, IGNORE, ArrayData, Data, MissingData, Part, Splits, load_data
from .evaluate import NoiseLevel, attention_parameters, evaluate, half_level, noise_sweep, sliding_scores
from .evaluation_command import load_network
from .loader import Batch, Loader, normalise
from .metrics import Accuracy, Confusion, Metric, metric_of
from .optimise import Lion, learning_rate, make_optimiser
from .recipe import Recipe, recipe_names
from .regularise import SparseRate
from .run import Diverged, Job, RunFolder
from .trainer import Parallel, train

__all__ = [
    "DATA",
    "DECODERS",
    "IGNORE",
    "Accuracy",
    "ArrayData",
    "Batch",
    "Confusion",
    "Data",
    "Diverged",
    "FrozenSegmenter",
    "Job",
    "Lion",
    "Loader",
    "Metric",
    "MissingData",
    "NoiseLevel",
    "Parallel",
    "Part",
    "Recipe",
    "RunFolder",
    "SparseRate",
    "Splits",
    "attention_parameters",
    "evaluate",
    "half_level",
    "learning_rate",
    "load_data",
    "load_network",
    "load_training",
    "make_classifier",
    "make_optimiser",
    "make_segmenter",
    "metric_of",
    "noise_sweep",
    "normalise",
    "read_training",
    "recipe_names",
    "save_training",
    "sliding_scores",
    "train",
]
