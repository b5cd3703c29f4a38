"""Uses of the tensors that modules return: operators, questions, sizes by axis, and what is held at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from graphprune.tracing.watching import Watch

ALL = {0, 1, 2}


class Around(nn.Module):
    """Code around one layer. use: what it does with the layer's result, of shape (2, 3, 4)."""

    def __init__(self, use: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(5, 4), use

    def forward(self, x: Tensor) -> Any:
        return self.use(self.layer(x))


def watched(use: Callable[[Tensor], Any]) -> tuple[Watch, set[int | None]]:
    """The run, and what of the layer's result is used outside of it: axes, or None for all that it holds."""
    watch, model = Watch(model := Around(use)), model
    with torch.no_grad(), watch.over():
        _held = model(torch.zeros(2, 3, 5))
    ((_, token),) = watch.calls[1].returned
    return watch, {one.axis for one in watch.uses if one.token == token and one.within is watch.calls[0]}


@pytest.mark.parametrize(
    ("use", "axes"),
    [
        (lambda y: y.shape[-2:], {1, 2}),
        (lambda y: y.shape[0], {0}),
        (lambda y: y.shape[-1], {2}),
        (lambda y: y.size(1), {1}),
        (lambda y: y.size(dim=-1), {2}),
        (lambda y: y.size()[1:], {1, 2}),
        (lambda y: y.shape.numel(), ALL),
        (lambda y: list(y.shape), ALL),
        (lambda y: (1, *y.shape), ALL),
        (lambda y: (1,) + y.shape, ALL),  # noqa: RUF005
        (lambda y: y.shape + (1,), ALL),  # noqa: RUF005
        (lambda y: y.shape == (2, 3, 4), ALL),
        (lambda y: y.shape != (2, 3, 4), ALL),
        (lambda y: 4 in y.shape, ALL),
        (lambda y: y.shape.index(4), ALL),
        (lambda y: dict.fromkeys([y.shape]), ALL),
        (lambda y: f"{y.shape}", ALL),
        (lambda y: np.zeros(y.shape), ALL),
        (lambda y: torch.zeros(24).view(y.shape), ALL),
        (lambda y: torch.zeros(24).reshape(shape=y.shape), ALL),
        (lambda y: y.shape > (1,), ALL),
        (lambda y: torch.zeros(y.shape), ALL),
        (lambda y: torch.zeros(3, *y.shape), ALL),
        (lambda y: isinstance(y.shape, torch.Size) and len(y.shape), set()),
        (lambda y: (y.dtype, y.device, y.dim(), y.ndim, y.is_floating_point()), set()),
    ],
)
def test_sizes_are_noted_by_axis(use: Callable[[Tensor], Any], axes: set[int]) -> None:
    assert watched(use)[1] == axes


@pytest.mark.parametrize(
    "use",
    [
        lambda y: y + 1,
        lambda y: y.numpy(),
        lambda y: y.tolist(),
        lambda y: y[0],
        lambda y: y.requires_grad_(),
        lambda y: len(y),
    ],
)
def test_values_are_noted_as_a_whole(use: Callable[[Tensor], Any]) -> None:
    assert None in watched(use)[1]


def test_what_is_held_at_the_end_is_kept_and_what_is_let_go_is_not() -> None:
    class Holder:
        def __init__(self, held: Tensor) -> None:
            self.held = held

    held, let_go = watched(Holder)[0], watched(lambda y: None)[0]
    ((_, token),) = held.calls[1].returned
    assert token in held.kept
    ((_, token),) = let_go.calls[1].returned
    assert token not in let_go.kept
