"""What a method asks of a training loop: two callables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Train(Protocol):
    """``train(model, epochs, state) -> state``.

    Trains the model in place for these epochs of the schedule: ``range(60, 61)`` asks for the learning rate of epoch 60, whatever
    the model went through before, which is how learning-rate rewinding works. state: what the last call for this model returned,
    with momentum and the like cut as the model was; None for a fresh optimiser. Returns the new state: any nesting of dicts, lists,
    numbers and tensors, such as ``{"optimiser": optimiser.state_dict()}``, or None. It is called for one epoch at a time, with
    torch, numpy and random seeded anew each time. Where distillation is asked for it also gets ``teacher=``, the dense model.

    Raises DivergedError where the loss became infinite or NaN.
    """

    def __call__(self, *args: Any, **extras: Any) -> Any:  # as type checkers read it: any signature, with a teacher or without
        """Train in place, and return the new state."""


class Evaluate(Protocol):
    """``evaluate(model) -> float``: higher is better, on validation data. Decisions go by it, so never by the test set."""

    def __call__(self, model: nn.Module, /) -> float:
        """Such as the top-1 accuracy, as a share."""


@dataclass(frozen=True)
class Loop:
    """A training loop."""

    train: Train
    evaluate: Evaluate
