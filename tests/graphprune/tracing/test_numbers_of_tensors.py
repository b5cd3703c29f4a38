"""Numbers that tensors have or hold: strides, and what a new tensor is filled with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import graphprune
from tests.checking import max_error, run
from tests.graphprune.tracing.forwards import double
from tests.graphprune.tracing.test_answers import EXAMPLE, LENGTHS, padded, pruned


def test_strides_follow_other_sizes() -> None:
    def body(self: Any, y: Any, lengths: Any) -> Any:
        size, stride = list(y.size()), list(y.stride())
        size[1] = size[1] * 2 - 1
        stride[1] = stride[1] // 2
        return y.as_strided(size, stride)

    model = padded(body)
    program = graphprune.capture(model, EXAMPLE)
    longer = double(2, 5, 4), LENGTHS
    assert max_error(run(program.module, longer), run(model, longer)) < 1e-12


def test_a_tensor_is_filled_with_a_number_that_a_constant_holds() -> None:
    """The strides of a detector's head, for anchors of as many places as the images have."""

    def body(self: Any, y: Any, lengths: Any) -> Any:
        levels = [torch.full((y.shape[1], 1), self.strides[level], dtype=y.dtype) for level in range(2)]
        return y * levels[0] + self.shift.clone().fill_(self.strides[1]) + levels[1]

    model = padded(body)
    model.strides = torch.tensor([8.0, 16.5])  # an attribute, no buffer
    model.shift = torch.zeros(1, dtype=torch.float64)
    slim, longer = pruned(model), (double(2, 12, 4), LENGTHS[:2])
    found = graphprune.capture(model, EXAMPLE)
    assert not found.opaque and not found.scopes
    assert max_error(run(found.module, longer), run(model, longer)) < 1e-12
    assert run(slim, longer).shape == (2, 12, 2)


def test_a_number_that_a_parameter_holds_fills_no_tensor() -> None:
    """It changes as the model is trained: what asks for it stays as it is."""
    model = padded(lambda self, y, lengths: y * torch.full((y.shape[1], 1), self.scale.detach(), dtype=y.dtype))
    model.scale = nn.Parameter(torch.tensor(2.0))
    assert [scope.path for scope in graphprune.capture(model, EXAMPLE).scopes] == ["a", "b"]


@pytest.mark.parametrize("write", [False, True])
def test_bounds_of_slices_are_tensors(write: bool) -> None:
    """``y[0, : lengths[0]]``, whose tensors other indices may be, too."""

    def body(self: Any, y: Any, lengths: Any) -> Any:
        if write:
            mask = torch.ones_like(y)
            mask[0, lengths[0] :] = 0
            return y * mask
        return y[lengths[1] - lengths[1], : lengths[0]] + y[:, 1 : lengths.min()].mean()

    model = padded(body)
    found = graphprune.capture(model, EXAMPLE)
    assert not found.opaque and not found.scopes
    longer = double(2, 12, 4), LENGTHS[:2] + 1
    assert max_error(run(found.module, longer), run(model, longer)) < 1e-12
    pruned(model)


def test_a_bound_that_activations_decide_stays() -> None:
    model = padded(lambda self, y, lengths: y[:, : (y.sum() > 0).long() + 1])
    program = graphprune.capture(model, EXAMPLE)
    assert [scope.path for scope in program.scopes] == ["a", "b"]
