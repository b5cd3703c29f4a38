"""Calibration data: what counts as a batch, that reading is repeatable, and how samples are limited and sorted by class."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.calibration import Batch, Calibration, as_batch, default_loss, never_negative
from graphprune.errors import UsageError
from graphprune.ir.program import Inputs

X, Y = torch.arange(12.0).reshape(6, 2), torch.tensor([0, 1, 0, 2, 1, 0])


def first(data: Calibration) -> list[Tensor]:
    return [batch.inputs.args[0] for batch in data]


@pytest.mark.parametrize(
    ("item", "args", "kwargs", "target"),
    [
        (X, 1, set(), False),
        ((X, Y), 1, set(), True),
        ([X, Y], 1, set(), True),
        ((X,), 1, set(), False),
        (((X, X), Y), 2, set(), True),
        ({"ids": X, "mask": X}, 0, {"ids", "mask"}, False),
        ({"ids": X, "labels": Y}, 0, {"ids"}, True),
        (({"ids": X}, Y), 0, {"ids"}, True),
        (Batch(Inputs((X,)), Y), 1, set(), True),
    ],
)
def test_what_loaders_yield_is_told_apart(item: Any, args: int, kwargs: set[str], target: bool) -> None:
    batch = as_batch(item)
    assert len(batch.inputs.args) == args and set(batch.inputs.kwargs) == kwargs
    assert (batch.target is Y) == target and batch.size == 6


@pytest.mark.parametrize("batches", [list, iter])
@pytest.mark.parametrize(("called", "inputs"), [({"ids": X, "labels": Y}, {"ids", "labels"}), ({"ids": X, "target": Y}, {"ids"})])
def test_labels_are_an_input_too_where_the_model_is_called_with_them(batches: Any, called: Any, inputs: set[str]) -> None:
    data = Calibration(batches([{"ids": X, "labels": Y}]), samples=4).called_as(Inputs((), called))
    for found in (data, data, data.part(0, 1), data.watched(lambda count: None)):
        (batch,) = found
        assert set(batch.inputs.kwargs) == inputs and batch.size == 4
        assert all(len(value) == 4 for value in batch.inputs.kwargs.values()) and torch.equal(batch.target, Y[:4])


@pytest.mark.parametrize("item", ["text", 3, (X, Y, Y), ()])
def test_anything_else_is_refused(item: Any) -> None:
    with pytest.raises(UsageError, match=r"Yield a tensor, a pair"):
        as_batch(item)


def test_a_batch_without_samples_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no tensor with samples"):
        _ = as_batch(torch.tensor(3.0)).size


def test_data_are_read_again_in_the_same_order() -> None:
    data = Calibration([(X[:4], Y[:4]), (X[4:], Y[4:])])
    assert [torch.equal(a, b) for a, b in zip(first(data), first(data), strict=True)] == [True, True]


def test_a_generator_is_kept_as_far_as_it_is_read() -> None:
    """A generator can be read once only, and may have no end."""
    made = []

    def endless() -> Iterator[Tensor]:
        for number in range(1000):
            made.append(number)
            yield torch.full((2, 1), float(number))

    data = Calibration(endless(), samples=5)
    assert [len(x) for x in first(data)] == [2, 2, 1] and len(made) == 3
    again = first(data)
    assert [float(x[0]) for x in again] == [0, 1, 2] and len(made) == 3


def test_a_loader_that_shuffles_is_asked_anew() -> None:
    """Only one-time iterators are kept: a data set that does not fit in memory is read from its loader each time."""
    reads = []

    class Loader:
        def __iter__(self) -> Iterator[Tensor]:
            reads.append(1)
            return iter([X])

    data = Calibration(Loader())
    first(data), first(data)
    assert len(reads) == 2


@pytest.mark.parametrize(("samples", "sizes"), [(1, [1]), (4, [4]), (5, [4, 1]), (100, [4, 2])])
def test_samples_are_limited_to_the_sample(samples: int, sizes: list[int]) -> None:
    data = Calibration([(X[:4], Y[:4]), (X[4:], Y[4:])], samples=samples)
    assert [batch.size for batch in data] == sizes
    assert [len(batch.target) for batch in data] == sizes


def test_no_samples_are_an_error() -> None:
    with pytest.raises(UsageError, match=r"at least 1"):
        Calibration([X], samples=0)
    with pytest.raises(UsageError, match=r"no samples in the file"):
        list(Calibration([], name="the file"))


def test_classes_come_in_order_with_their_first_samples() -> None:
    data = Calibration([(X[:4], Y[:4]), (X[4:], Y[4:])])
    found = {label: batch.inputs.args[0][:, 0].tolist() for label, batch in data.by_class(2)}
    assert found == {0: [0.0, 4.0], 1: [2.0, 8.0], 2: [6.0]}
    assert list(found) == [0, 1, 2]


@pytest.mark.parametrize("target", [None, torch.zeros(6), torch.zeros(6, 2, dtype=torch.int64)])
def test_classes_need_one_integer_for_each_sample(target: Any) -> None:
    with pytest.raises(UsageError, match=r"Classes need integer targets"):
        list(Calibration([(X, target)]).by_class(2))


def test_inputs_take_the_dtype_of_the_example_and_integers_keep_theirs() -> None:
    batch = Batch(Inputs((X, Y)), X).to(torch.device("cpu"), like=Inputs((X.double(),)))
    assert [part.dtype for part in batch.inputs.args] == [torch.float64, torch.int64]
    assert batch.target.dtype == torch.float32


def test_losses_are_recognised() -> None:
    scores = torch.randn(6, 3)
    assert torch.equal(default_loss(scores, Y), F.cross_entropy(scores, Y))
    assert torch.equal(default_loss({"logits": scores}, Y), F.cross_entropy(scores, Y))
    assert torch.equal(default_loss(scores, scores + 1), torch.tensor(1.0))
    assert torch.equal(default_loss({"loss": torch.tensor(2.0), "logits": scores}, None), torch.tensor(2.0))
    assert torch.equal(default_loss(SimpleNamespace(loss=torch.tensor(3.0)), None), torch.tensor(3.0))
    pixels = torch.randn(2, 3, 4, 4)
    assert torch.isfinite(default_loss(pixels, torch.zeros(2, 4, 4, dtype=torch.int64)))


def test_only_the_default_loss_is_known_to_be_at_least_zero_and_only_where_the_model_has_none() -> None:
    scores = torch.randn(6, 3)
    assert never_negative(default_loss, scores) and never_negative(default_loss, {"logits": scores})
    assert not never_negative(default_loss, {"logits": scores, "loss": torch.tensor(-1.0)})
    assert not never_negative(F.cross_entropy, scores)


def test_a_loss_without_targets_or_with_unfit_ones_is_refused() -> None:
    with pytest.raises(UsageError, match=r"have no targets"):
        default_loss(torch.randn(6, 3), None)
    with pytest.raises(UsageError, match=r"do not fit a cross-entropy"):
        default_loss(torch.randn(6, 3), torch.zeros(5, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"do not fit a mean squared error.*classes as integers"):
        default_loss(torch.randn(6, 3), torch.zeros(6))
    with pytest.raises(UsageError, match=r"targets are dict, .*Calibration\(batches, loss=function\)"):
        default_loss(torch.randn(6, 3), {"classes": torch.zeros(6)})
    for label in (255, -1):
        with pytest.raises(UsageError, match=rf"target {label} is none of the 3 classes.*make it -100"):
            default_loss(torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, label]] * 2))
    assert torch.isfinite(default_loss(torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, -100]] * 2)))


def test_a_watcher_is_told_of_samples_that_were_used() -> None:
    seen: list[int] = []
    data = Calibration([X[:4], X[4:]], samples=5).watched(seen.append)
    assert [len(x) for x in first(data)] == [4, 1] and seen == [4, 5]
