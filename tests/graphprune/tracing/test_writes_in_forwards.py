"""Writes in forwards: in-place operators, slices, caches and constants; nothing adds up from one call to the next."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.checking import run
from tests.graphprune.tracing.forwards import check, double, same
from tests.zoo.case import net

X, Y = double(2, 4), double(3, 4)


def layers(**more: Any) -> dict[str, Any]:
    return {"a": nn.Linear(4, 6), "b": nn.Linear(6, 2), **more}


def in_place_methods(x: Tensor) -> Any:
    return x.relu_().add_(1).mul_(x).clamp_(max=2.0)


def in_place_signs(x: Tensor) -> Any:
    y = x
    y += 1
    y *= 2
    y -= x.mean()
    y /= 3
    y **= 2
    return x + y


def in_place_functions(x: Tensor) -> Any:
    F.relu(x, inplace=True)
    torch.relu_(x)
    return F.hardswish(F.leaky_relu_(x), inplace=True) + x


def masked_fill(x: Tensor) -> Any:
    x.masked_fill_(x > 1, 0.5)
    return x


def boolean_write(x: Tensor) -> Any:
    y = x.clone()
    y[x > 0] = 0.0
    return y


def slice_write(x: Tensor) -> Any:
    y = x.clone()
    y[:, 1:3] = x[:, 3:5] * 2
    y[0] = 0
    return y


def slice_read_and_write(x: Tensor) -> Any:
    x[:, :2] += 1
    x[..., 2:].mul_(3)
    return x


def write_into_a_view(x: Tensor) -> Any:
    view = x.view(-1)
    view += 1
    part = x[:, 3]
    part.zero_()
    return x


def index_put(x: Tensor) -> Any:
    y = torch.zeros_like(x)
    y[torch.arange(x.shape[0]), 0] = x[:, 1]
    y.index_put_((torch.tensor([0]), torch.tensor([2])), x[0, 2])
    y.index_add_(0, torch.tensor([0]), x[:1])
    y.scatter_(1, torch.zeros(1, 1, dtype=torch.long), 2.0)
    return y + x


def buffer_made_and_filled(x: Tensor) -> Any:
    out = x.new_zeros(x.shape[0], 6)
    for index in range(3):
        out[:, 2 * index : 2 * index + 2] = x[:, 2 * index : 2 * index + 2] * (index + 1)
    return out


def copied(x: Tensor) -> Any:
    y = torch.empty_like(x)
    y.copy_(x)
    torch.add(x, 1, out=y)
    return y.fill_(2.0) * x


def detached(x: Tensor) -> Any:
    y = x.detach()
    y.add_(1)
    return x + x.data * 2


WRITES = [in_place_methods, in_place_signs, in_place_functions, masked_fill, boolean_write, slice_write, slice_read_and_write,
          write_into_a_view, index_put, buffer_made_and_filled, copied, detached]  # fmt: skip


@pytest.mark.parametrize("forward", WRITES, ids=lambda forward: forward.__name__)
def test_writes(forward: Any) -> None:
    check(net(lambda self, x: self.b(forward(self.a(x))), **layers()), X, Y, groups=0)


def constant(x: Tensor) -> Any:
    t = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], dtype=torch.float64)
    t += 1
    t[2] = 0
    t.mul_(2)
    return x + t


def constant_by_parts(x: Tensor) -> Any:
    t = torch.arange(6, dtype=torch.float64)
    part = t[2:4]
    part.add_(10)
    return x + t


def constant_as_out(x: Tensor) -> Any:
    t = torch.arange(6, dtype=torch.float64)
    torch.add(t, 1, out=t)
    return x + t


def constant_that_takes_data(x: Tensor) -> Any:
    t = torch.arange(6, dtype=torch.float64)
    t += x[0]
    return x + t


def constant_in_a_function(x: Tensor) -> Any:
    t = torch.arange(6, dtype=torch.float64) - 3
    F.relu(t, inplace=True)
    nn.init.constant_(t[:1], 7.0)
    return x * t


def constant_read_before_a_write(x: Tensor) -> Any:
    t = torch.eye(6, dtype=torch.float64)
    y = x @ t
    t.fill_diagonal_(2.0)
    return y + x @ t


CONSTANTS = [
    constant,
    constant_by_parts,
    constant_as_out,
    constant_that_takes_data,
    constant_in_a_function,
    constant_read_before_a_write,
]


@pytest.mark.parametrize("forward", CONSTANTS, ids=lambda forward: forward.__name__)
def test_constants_that_are_written_into_start_anew_in_each_call(forward: Any) -> None:
    model = net(lambda self, x: self.b(forward(self.a(x))), **layers())
    found, slim = check(model, X, Y, groups=0)
    for subject in (found.program.module, slim):
        first = run(subject, X)
        run(subject, Y)
        same(run(subject, X), first)


@pytest.mark.parametrize("kind", ["dict", "list", "attribute"])
def test_caches_that_a_forward_writes(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        if kind == "dict":
            self.cache["last"] = y
        elif kind == "list":
            self.cache.append(y)
        else:
            self.cache = y
        return self.b(y)

    empty: Any = {"dict": {}, "list": [], "attribute": None}
    model = net(forward, **layers(cache=empty[kind]))
    program = graphprune.capture(model, X)
    assert not model.cache, "nothing of the trace stays on the model"
    same(run(program.module, Y), run(model, Y))


def test_a_nested_cache() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.a(x)
        self.cache["states"].append(y)
        return self.b(y)

    model = net(forward, **layers(cache={"states": []}))
    graphprune.capture(model, X)
    assert model.cache == {"states": []}


def test_a_cached_constant_is_one_of_the_original_afterwards() -> None:
    """A table that a forward makes once and keeps: the capture works before and after the model made its own."""

    def forward(self: Any, x: Tensor) -> Any:
        if self.table is None:
            self.table = torch.arange(6, dtype=torch.float64)
        return self.b(self.a(x) + self.table)

    model = net(forward, **layers(table=None))
    graphprune.capture(model, X)
    assert model.table is None
    run(model, X)
    check(model, X, Y)


def test_a_counter_stays_what_it_was() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        self.calls += 1
        return self.b(self.a(x))

    model = net(forward, **layers(calls=0))
    graphprune.capture(model, X)
    assert model.calls == 0


def test_a_buffer_that_a_forward_writes_moves_in_the_captured_model_too() -> None:
    class Counts(nn.Module):
        seen: Tensor
        mean: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
            self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Any:
            y = self.a(x)
            self.seen += 1
            self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
            return self.b(y - self.mean) * self.seen

    model = Counts().double().eval()
    program = graphprune.capture(copy.deepcopy(model), X)
    for _ in range(3):
        same(run(program.module, X), run(model, X))
    assert float(program.module.get_buffer("seen")) == 3
    assert float(graphprune.capture(Counts().double(), X).module.get_buffer("seen")) == 0
