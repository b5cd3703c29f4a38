"""Durable runs: a method's steps are recorded as they are done, so that a run that was killed goes on where it was."""

from graphprune.runs.bench import Bench
from graphprune.runs.history import Round, Watch
from graphprune.runs.stage import Stage

__all__ = ["Bench", "Round", "Stage", "Watch"]
