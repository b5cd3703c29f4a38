"""Pruning from within somebody else's training loop: a schedule, and callbacks that tell it how far the training is."""

from graphprune.callbacks.gradual import GradualPruning

__all__ = ["GradualPruning"]
