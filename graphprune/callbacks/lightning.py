"""Gradual pruning within a ``Trainer`` of Lightning. Importing this needs lightning, or pytorch-lightning."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from graphprune.callbacks.gradual import GradualPruning

_NAME = "lightning.pytorch" if find_spec("lightning") else "pytorch_lightning"
_Callback: Any = import_module(_NAME).Callback


def _done(trainer: Any) -> float:
    """The share of the training that is done; several optimisers make more steps than there are batches."""
    return min(1.0, max(0.0, float(trainer.global_step / trainer.estimated_stepping_batches)))


class PruningCallback(_Callback):  # type: ignore[misc]
    """Closes the masks of ``pruning`` while a ``Trainer`` trains a LightningModule that calls them."""

    def __init__(self, pruning: GradualPruning) -> None:
        super().__init__()
        self.pruning = pruning

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Cut if it is time."""
        self.pruning.step(_done(trainer))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The last cut, for a schedule that ends with the training."""
        self.pruning.step(_done(trainer))
