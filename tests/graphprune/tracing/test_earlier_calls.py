"""What a model has kept of earlier calls, as a detector its anchors for a size of image, is no part of its graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import graphprune
from graphprune.ir.program import Inputs
from graphprune.tracing.earlier_calls import inputs_of_other_sizes
from tests.graphprune.tracing.forwards import check, double
from tests.zoo.case import conv, net

X, LARGER, MORE = double(2, 3, 8, 8), double(2, 3, 12, 10), double(3, 3, 8, 8)


def places(y: Tensor) -> Tensor:
    """What is the same for every image of a size."""
    rows, columns = y.shape[2:]
    return torch.arange(rows * columns, dtype=y.dtype).view(rows, columns) + torch.zeros(
        y.shape[0], 1, rows, columns, dtype=y.dtype
    )


def by_shape(self: Any, x: Tensor) -> Any:
    """YOLOv8 to YOLO26 of Ultralytics keep a ``torch.Size``."""
    y = self.a(x)
    if self.kept != y.shape:
        self.grid, self.kept = places(y), y.shape
    return self.b(y) * self.grid


def by_numbers(self: Any, x: Tensor) -> Any:
    """RT-DETR keeps numbers in lists."""
    y = self.a(x)
    sizes = [[y.shape[0], y.shape[2], y.shape[3]]]
    if self.kept != sizes:
        self.grid, self.kept = places(y), sizes
    return self.b(y) * self.grid


def by_grid(self: Any, x: Tensor) -> Any:
    """YOLOv5 compares with what it has kept, in a list."""
    y = self.a(x)
    if self.kept[0].shape[2:4] != y.shape[2:4]:
        self.kept[0] = places(y)[:1]
    return self.b(y) * self.kept[0]


def by_features(self: Any, x: Tensor) -> Any:
    """YOLO26 makes them as new tensors like the features."""
    y = self.a(x)
    if self.kept != y.shape:
        self.grid, self.kept = torch.arange(y.shape[3]).type_as(y) + y.new_full((y.shape[2], 1), 4.0), y.shape
    return self.b(y) * self.grid


FORWARDS: list[tuple[Callable[..., Any], Any]] = [
    (by_shape, None),
    (by_numbers, []),
    (by_grid, [torch.empty(0)]),
    (by_features, None),
]


def model_of(forward: Callable[..., Any], kept: Any) -> nn.Module:
    return net(forward, a=conv(3, 8), b=conv(8, 2), kept=list(kept) if isinstance(kept, list) else kept, grid=torch.empty(0))


@pytest.mark.parametrize("earlier", [X, LARGER, None], ids=["same", "other", "none"])
@pytest.mark.parametrize(("forward", "kept"), FORWARDS, ids=["shape", "numbers", "grid", "features"])
def test_a_model_that_has_run_takes_all_sizes(forward: Callable[..., Any], kept: Any, earlier: Tensor | None) -> None:
    model = model_of(forward, kept)
    if earlier is not None:
        model(earlier)
    state = dict(model.__dict__)
    graphprune.capture(model, X)
    assert all(model.__dict__[name] is value for name, value in state.items())
    check(model, X, LARGER, MORE, X)


def test_its_train_mode_takes_all_sizes_too() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        if self.kept != y.shape:
            self.grid, self.kept = places(y), y.shape
        return self.b(nn.functional.dropout(y, 0.5, self.training)) * self.grid

    model = model_of(forward, None)
    model(X)
    program = graphprune.capture(model, X)
    assert not program.eval_only
    program.module.train()
    assert program.module(MORE).shape == (3, 2, 8, 8)


def test_a_size_that_a_model_is_made_for_stays_checked() -> None:
    """It keeps something, but not that."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        self.grid = y
        return self.b(y if y.shape[2] == self.kept else y * 2)

    model = model_of(forward, 8)
    slim = graphprune.prune(model, X, target="channels=50%").model
    assert slim(MORE).shape == (3, 2, 8, 8)
    with pytest.raises(AssertionError, match="another branch"):
        slim(LARGER)


def test_a_state_of_values_stays_what_it_was() -> None:
    """A call of another batch size would begin it anew, and the graph would not compute what the model does."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        if self.grid.shape[0] != y.shape[0]:
            self.grid = torch.zeros_like(y)
        self.grid = self.grid * 0.5 + y
        return self.b(self.grid)

    model = model_of(forward, None)
    model(X)
    state = model.grid
    program = graphprune.capture(model, X)
    expected = model(X)
    assert torch.equal(program.module(X), expected)
    model.grid = state
    graphprune.prune(model, X, target="channels=50%")


def test_what_is_kept_and_then_used_without_a_comparison_is_what_it_was() -> None:
    """The next call uses what the last one has made: a graph has no such memory."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        grid, self.grid = self.grid, places(y)
        return self.b(y * 2 if y.shape[2] == self.kept else y) * grid.sum()

    model = model_of(forward, 8)
    model.grid = torch.ones(2)
    program = graphprune.capture(model, X)
    assert torch.equal(program.module(X), model(X))


def test_inputs_of_other_sizes_are_larger_images_then_more_then_longer() -> None:
    inputs = Inputs((X, double(2, 5)), {"n": 3})
    found = [[tuple(leaf.shape) for leaf in other.args] for other in inputs_of_other_sizes(inputs)]
    assert found == [[(3, 3, 16, 16), (3, 5)], [(3, 3, 8, 8), (3, 5)], [(2, 3, 8, 8), (2, 10)]]
    assert all(other.kwargs == {"n": 3} for other in inputs_of_other_sizes(inputs))
