"""A model while it trains: the smaller one, or the original with what is removed held at zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from graphprune.errors import DivergedError
from graphprune.plans.plan import Plan
from graphprune.runs.masks import held_at_zero
from graphprune.training.penalties import Penalty, penalised


class Fitting:
    """A model in training.

    slim: the model of a stage, with its weights. whole, plan: to train with masks, a copy of the original, and what of it is left;
    None to train the slim model itself.
    """

    def __init__(self, slim: nn.Module, whole: nn.Module | None = None, plan: Plan | None = None) -> None:
        self._slim, self._plan = slim, plan if whole is not None else None
        self.model = slim if whole is None else whole
        if whole is not None and plan is not None:
            full = whole.state_dict()
            left = {name: plan.unslice(name, tensor, full[name].shape) for name, tensor in slim.state_dict().items()}
            whole.load_state_dict({**full, **left})

    @contextmanager
    def held(self, penalty: Penalty | None) -> Iterator[None]:
        """A context in which the penalty counts, and what is removed stays at zero."""
        with ExitStack() as stack:
            if self._plan is not None:
                stack.enter_context(held_at_zero(self.model, self._plan))
            if penalty is not None:
                stack.enter_context(penalised(self.model, penalty))
            yield

    def weights(self) -> dict[str, Tensor]:
        """The slim model's."""
        found = self.model.state_dict()
        if self._plan is None:
            return found
        return {name: self._plan.slice(name, found[name]) for name in self._slim.state_dict()}

    def slim(self) -> nn.Module:
        """The slim model as it is now."""
        if self.model is not self._slim:
            self._slim.load_state_dict(self.weights())
        return self._slim

    def check_finite(self) -> None:
        """Raise DivergedError naming the first parameter that holds NaN or infinity."""
        for name, parameter in self.model.named_parameters():
            if not bool(torch.isfinite(parameter).all()):
                raise DivergedError(f"Training left NaN or infinite values in {name}. Lower the learning rate.")
