"""Types of tensors by name or class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import DoubleTensor, Tensor, nn

import graphprune
from graphprune.tracing.tensor_types import dtype_of, name_of
from graphprune.tracing.untraced import Untraceable
from tests.checking import analyse, check_plan
from tests.zoo.case import net

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["torch.DoubleTensor", torch.DoubleTensor, torch.float64])
def test_a_type_of_the_same_device_is_a_dtype(kind: object) -> None:
    assert dtype_of(kind, CPU) == torch.float64
    assert name_of(torch.float64, CPU) == "torch.DoubleTensor"


def test_the_class_of_all_tensors_is_the_type_of_those_made_without_one() -> None:
    """SSD casts its boxes to ``type(x.data)``, which is this class for every tensor."""
    before, kind = torch.get_default_dtype(), cast(Any, torch.Tensor)
    try:
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            assert dtype_of(kind, CPU) == torch.ones(2).half().type(kind).dtype == dtype
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("kind", ["torch.cuda.DoubleTensor", vars(torch.cuda)["DoubleTensor"]])
def test_a_type_of_another_device_is_not_traced(kind: object) -> None:
    with pytest.raises(Untraceable, match="another device"):
        dtype_of(kind, CPU)


def _written(x: Tensor) -> Tensor:
    steps = torch.DoubleTensor([1.0, 2.0])
    steps[1] = x.sum()
    return steps.sum()


#: Tensors that a type makes, which is no call of torch.
MADE: dict[str, Callable[[Tensor], Any]] = {
    "of a list": lambda x: torch.DoubleTensor([0.5]),
    "of the default dtype": lambda x: torch.Tensor([0.5]).double(),
    "of integers": lambda x: torch.LongTensor([2]),
    "of an array": lambda x: torch.LongTensor(np.array([2])),
    "of a list, and moved": lambda x: torch.DoubleTensor([0.5]).to(x.device),
    "of a size, and filled": lambda x: torch.DoubleTensor(1).fill_(0.5),
    "of a list, and written into": _written,
}


@pytest.mark.parametrize("made", MADE.values(), ids=list(MADE))
def test_a_tensor_that_a_type_makes_in_a_forward(made: Callable[[Tensor], Any]) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x).relu() / (made(x) + 1))

    x, other = torch.randn(2, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    found = analyse(net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2)), x)
    assert not found.program.opaque
    assert {group.name: group.size for group in found.groups.prunable} == {"a": 8}
    assert torch.equal(found.program.module(other), found.model(other))
    for seed in (0, 1):
        check_plan(found, found.random_plan(seed), other=other)


def test_a_type_makes_a_table_that_goes_along_with_a_width() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) * torch.DoubleTensor([1, 2, 3, 4, 5, 6, 7, 8]))

    found = analyse(net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2)), torch.randn(2, 5, dtype=torch.float64))
    assert {group.name: group.size for group in found.groups.prunable} == {"a": 8}
    check_plan(found, found.random_plan(0))


def test_a_size_that_a_type_under_another_name_is_given_is_that_of_the_example() -> None:
    """The type reads it as a number of C, which remembers nothing: the graph checks it."""
    kind = torch.DoubleTensor

    def forward(self: Any, x: Tensor) -> Any:
        return self.b(self.a(x) / kind([x.shape[1]]))

    x, longer = torch.randn(2, 3, 5, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    found = analyse(net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2)), x)
    assert torch.equal(found.program.module(x), found.model(x))
    with pytest.raises(AssertionError, match=r"x.shape\[1\] == 3"):
        found.program.module(longer)


#: Tensors that a type makes of sizes, which are others in another call.
SIZED: dict[str, Callable[[Tensor], Any]] = {
    "of sizes": lambda x: torch.DoubleTensor(x.shape[0], 1).fill_(0.5),
    "of a shape": lambda x: torch.DoubleTensor(x[:, :1].size()).fill_(0.5),
    "of the default dtype": lambda x: torch.Tensor(x.size(0), 1).zero_().double(),
    "of a name": lambda x: DoubleTensor(len(x), 1).fill_(x.shape[0]),
    "within": lambda x: torch.cat([torch.Tensor(n, 1).fill_(2.0) for n in (x.shape[0],)]).double(),
    "of sizes as data": lambda x: torch.DoubleTensor([x.shape[0], 1]).prod(),
    "drawn": lambda x: torch.DoubleTensor(x.shape[0], 1).uniform_().sign(),
}


@pytest.mark.parametrize("made", SIZED.values(), ids=list(SIZED))
def test_sizes_of_a_tensor_that_a_type_makes_may_be_others(made: Callable[[Tensor], Any]) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        assert isinstance(x, torch.Tensor) and torch.Tensor.dim(x) == Tensor.dim(x) == 2 and not isinstance(x, torch.FloatTensor)
        return self.b(self.a(x).relu() / (self.made(x) + 1))

    x, other = torch.randn(2, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    found = analyse(net(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 2), made=made), x)
    assert not found.program.opaque and not found.program.scopes
    assert torch.equal(found.program.module(other), found.model(other))
    check_plan(found, found.random_plan(0), other=other)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_type_under_another_name_makes_no_tensor_of_sizes(batch: int) -> None:
    kind = torch.DoubleTensor
    inner = net(lambda self, x: self.l(x) * kind(x.shape[0], 1).fill_(1.0), l=nn.Linear(8, 8))
    program = graphprune.capture(nn.Sequential(nn.Linear(5, 8).double(), inner), torch.randn(batch, 5, dtype=torch.float64))
    assert "torch.empty does so" in program.opaque["1"] and "test_tensor_types.py" in program.opaque["1"]
    assert not [name for name in vars(torch) if name.startswith("_DoubleTensor ")]


@pytest.mark.parametrize("data", [lambda x: [x.shape[0]], lambda x: [[len(x), 1]], lambda x: [2, 1]])
def test_a_type_under_another_name_makes_no_tensor_of_integers(data: Callable[[Tensor], Any]) -> None:
    """It reads them in C, whatever they remember: that of the example would stay."""
    kind = torch.LongTensor
    inner = net(lambda self, x: self.l(x) * kind(data(x)).sum(), l=nn.Linear(8, 8))
    program = graphprune.capture(nn.Sequential(nn.Linear(5, 8).double(), inner), torch.randn(2, 5, dtype=torch.float64))
    assert "torch.tensor does so" in program.opaque["1"] and "test_tensor_types.py" in program.opaque["1"]
