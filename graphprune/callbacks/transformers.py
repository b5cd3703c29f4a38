"""Gradual pruning within a ``Trainer`` of transformers. Importing this needs transformers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from graphprune.callbacks.gradual import GradualPruning

_Callback: Any = import_module("transformers").TrainerCallback


class PruningCallback(_Callback):  # type: ignore[misc]
    """Closes the masks of ``pruning`` while a ``Trainer`` trains them: its model is ``pruning.masks``."""

    def __init__(self, pruning: GradualPruning) -> None:
        self.pruning = pruning

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut if it is time."""
        self.pruning.step(state.global_step / max(1, state.max_steps))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last cut, for a schedule that ends with the training."""
        self.pruning.step(state.global_step / max(1, state.max_steps))
