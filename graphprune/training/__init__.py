"""What trains: penalties on the weights, the state of an optimiser carried over a cut, and a training loop with its data."""

from graphprune.training.data import TrainingData, load_training_data
from graphprune.training.penalties import penalised
from graphprune.training.recipes import RECIPES, recipe
from graphprune.training.settings import Training
from graphprune.training.trainer import Progress, Trainer

__all__ = ["RECIPES", "Progress", "Trainer", "Training", "TrainingData", "load_training_data", "penalised", "recipe"]
