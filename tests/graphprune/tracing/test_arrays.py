"""Integers that a model reads as arrays of numpy: lengths of sequences, for one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphprune
from tests.checking import max_error, run
from tests.graphprune.tracing.test_answers import EXAMPLE, OTHERS, X, padded


def packed(self: Any, y: Any, lengths: Any) -> Any:
    return pad_packed_sequence(
        pack_padded_sequence(y, lengths.cpu().numpy(), batch_first=True, enforce_sorted=False), batch_first=True
    )[0]


def masked(self: Any, y: Any, lengths: Any) -> Any:
    ends = torch.as_tensor(lengths.numpy())
    assert torch.is_tensor(ends)
    return y * (torch.arange(y.shape[1])[None] < ends[:, None])[..., None]


def taken_from(self: Any, y: Any, lengths: Any) -> Any:
    array = lengths.numpy()
    assert isinstance(array, np.ndarray)
    return y * (torch.arange(y.shape[1])[None] < torch.from_numpy(array)[:, None])[..., None]


def cut_to_the_largest(self: Any, y: Any, lengths: Any) -> Any:
    return y[:, : np.max(lengths.numpy())] * lengths.numpy().min()


def cut_to_an_item(self: Any, y: Any, lengths: Any) -> Any:
    return y[:, : max(lengths.numpy())] * lengths.numpy()[1]


@pytest.mark.parametrize("body", [packed, masked, taken_from, cut_to_the_largest, cut_to_an_item], ids=lambda body: body.__name__)
def test_what_is_taken_for_a_tensor_or_one_by_one_stays_variable(body: Any) -> None:
    model = padded(body)
    found = graphprune.capture(model, EXAMPLE)
    assert not found.opaque and not found.scopes
    for lengths in (EXAMPLE[1], OTHERS):
        assert max_error(run(found.module, (X, lengths)), run(model, (X, lengths))) < 1e-12


def sorted_by_numpy(self: Any, y: Any, lengths: Any) -> Any:
    return y[np.argsort(-lengths.numpy())]


def cut_by_numpy(self: Any, y: Any, lengths: Any) -> Any:
    return y[:, : int(np.mean(lengths.numpy()))]


def computed_with(self: Any, y: Any, lengths: Any) -> Any:
    array = lengths.numpy()
    array = 1 + (array * 2)[[0, 1, 2]] - array.astype(np.float64)
    return y * torch.tensor(array)[:, None, None]


@pytest.mark.parametrize("body", [sorted_by_numpy, cut_by_numpy, computed_with], ids=lambda body: body.__name__)
def test_what_numpy_computes_is_checked_to_be_that_of_the_example(body: Any) -> None:
    model = padded(body)
    found = graphprune.capture(model, EXAMPLE)
    assert not found.opaque and not found.scopes
    assert max_error(run(found.module, EXAMPLE), run(model, EXAMPLE)) < 1e-12
    with pytest.raises(AssertionError, match="take another branch"):
        run(found.module, (X, OTHERS))


def test_values_that_the_model_computes_are_no_array() -> None:
    model = padded(lambda self, y, lengths: y * torch.tensor(y.detach().mean((1, 2)).numpy())[:, None, None])
    assert [scope.path for scope in graphprune.capture(model, EXAMPLE).scopes] == ["a", "b"]
