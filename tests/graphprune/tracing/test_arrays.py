"""Numpy in forwards: integers that a model reads as arrays of it, as lengths of sequences, and what it computes of sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import graphprune
from tests.checking import max_error, run
from tests.graphprune.tracing.forwards import check, double
from tests.graphprune.tracing.test_answers import EXAMPLE, OTHERS, X, padded
from tests.zoo.case import conv, net


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


def padded_to_windows(y: Any) -> Any:
    """As Swin transformers mask shifted windows; its mask has the size that numpy computes."""
    width = int(np.ceil(y.shape[3] / 7)) * 7
    mask = torch.ones(1, 1, 1, width)
    mask[..., -3:] = 2
    return F.pad(y, (0, width - y.shape[3])) * mask


def scaled(y: Any) -> Any:
    side = np.maximum(y.shape[2], y.shape[3])
    return y / np.sqrt(side) * np.log2(side) * np.rint(side / 3).astype(np.int64) - np.floor(np.exp(y.shape[0] / 10))


def flattened(y: Any) -> Any:
    return y.reshape(y.shape[0], y.shape[1], np.prod(y.shape[2:])).unsqueeze(-1)


def resized(y: Any) -> Any:
    """Sizes as an array, and an array that is computed with them."""
    sizes = np.array(y.shape[2:])
    assert sizes.shape == (2,) and not (sizes % np.power(2, 2)).any() and sizes.astype(float).prod() > 1
    return F.interpolate(F.interpolate(y, size=tuple(sizes * 2)), size=[int(sizes[0]), int(np.round(sizes[1] * 1.5))])


@pytest.mark.parametrize("body", [padded_to_windows, scaled, flattened, resized], ids=lambda body: body.__name__)
def test_what_numpy_computes_of_sizes_stays_variable(body: Any) -> None:
    model = net(lambda self, x: self.b(body(self.a(x))), a=conv(3, 6), b=conv(6, 2))
    check(model, double(2, 3, 8, 8), double(3, 3, 8, 8), double(1, 3, 12, 16))


def ramp(y: Any) -> Any:
    return y + torch.from_numpy(np.arange(y.shape[3]))


def spread(y: Any) -> Any:
    return y + torch.from_numpy(np.linspace(0, y.shape[3], num=5)).mean()


def triangle(y: Any) -> Any:
    return y @ torch.from_numpy(np.triu(np.ones((y.shape[3], y.shape[3]))))


def grid(y: Any) -> Any:
    return y + torch.from_numpy(np.mgrid[0:1, 0 : y.shape[3]][1])


def number_of_numpy(y: Any) -> Any:
    return y * np.int64(y.shape[3]) + np.float32(y.shape[3] / 2)


def inner(y: Any) -> Any:
    return y * np.cos(y.shape[3])


@pytest.mark.parametrize("body", [ramp, spread, triangle, grid, number_of_numpy, inner], ids=lambda body: body.__name__)
def test_other_sizes_are_refused_where_numpy_computes_what_python_does_not(body: Any) -> None:
    """Without the check some would be followed with the numbers of the example, and nothing would say so."""
    model = net(lambda self, x: self.b(body(self.a(x))), a=conv(3, 6), b=conv(6, 2))
    check(model, double(2, 3, 8, 8), double(3, 3, 8, 8), double(1, 3, 12, 8))
    with pytest.raises(AssertionError, match=r"where .*a\.shape\[3\].* == "):
        run(graphprune.capture(model, double(2, 3, 8, 8)).module, double(2, 3, 8, 12))
