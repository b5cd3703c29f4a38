"""Gradual pruning within a ``Trainer`` of transformers. Importing this needs transformers."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from graphprune.callbacks.gradual import GradualPruning

_Callback: Any = import_module("transformers").TrainerCallback


class PruningCallback(_Callback):  # type: ignore[misc]
    """Closes the masks of ``pruning`` while a ``Trainer`` trains them.

    The trainer's model is ``pruning.masks``. It takes any arguments, so set ``remove_unused_columns=False``: the trainer cannot
    read off it which columns of the data it uses.
    """

    def __init__(self, pruning: GradualPruning) -> None:
        self.pruning = pruning
        # Or the trainer takes the ``**kwargs`` of their forward for a wish to be told the size of the batch.
        setattr(pruning.masks, "accepts_loss_kwargs", False)  # noqa: B010

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Cut if it is time."""
        self.pruning.step(state.global_step / max(1, state.max_steps))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last cut, for a schedule that ends with the training."""
        self.pruning.step(state.global_step / max(1, state.max_steps))
