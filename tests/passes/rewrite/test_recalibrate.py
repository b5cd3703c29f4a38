"""Batch-norm statistics on calibration data, against a plain loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.errors import UsageError
from graphprune.ir.twins import named_tensors
from graphprune.passes.rewrite.recalibrate import RecalibratePass
from tests.passes.rewrite.compensating import after, without
from tests.zoo.case import net


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def model() -> nn.Module:
    torch.manual_seed(0)
    return net(
        lambda self, x: self.c(F.relu(self.n2(self.b(F.relu(self.n1(self.a(x))))))),
        a=nn.Conv2d(3, 6, 3),
        n1=nn.BatchNorm2d(6),
        b=nn.Conv2d(6, 5, 3),
        n2=nn.BatchNorm2d(5),
        c=nn.Conv2d(5, 2, 1),
    )


@torch.no_grad()
def test_statistics_are_those_of_all_samples_each_norm_behind_new_ones() -> None:
    x = rand(10, 3, 9, 9)
    slim = without(model(), x, {"a.weight": [1, 2]})
    done = after(slim, [x[:4], x[4:5], x[5:]], RecalibratePass())
    part = slim.module.get_submodule
    y = part("a")(x)
    for norm, following in (("n1", "b"), ("n2", "c")):
        mean, variance = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=True)
        assert torch.allclose(done.module.get_buffer(f"{norm}.running_mean"), mean, rtol=1e-12)
        assert torch.allclose(done.module.get_buffer(f"{norm}.running_var"), variance, rtol=1e-12)
        weight, bias = done.module.get_parameter(f"{norm}.weight"), done.module.get_parameter(f"{norm}.bias")
        y = part(following)(F.relu(F.batch_norm(y, mean, variance, weight, bias)))
    assert torch.allclose(done.module(x), y, rtol=1e-10)


def test_all_else_stays() -> None:
    x = rand(4, 3, 9, 9)
    slim = without(model(), x, {"a.weight": [1]})
    before = {name: tensor.clone() for name, tensor in named_tensors(slim.module).items()}
    done = named_tensors(after(slim, [x], RecalibratePass()).module)
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(slim.module).items())
    changed = {name for name in before if not torch.equal(before[name], done[name])}
    assert changed == {f"{norm}.running_{what}" for norm in ("n1", "n2") for what in ("mean", "var")}


def test_a_functional_batch_norm_is_one_too() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.batch_norm(self.a(x), self.mean, self.variance))

    torch.manual_seed(0)
    bare = net(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    bare.register_buffer("mean", torch.zeros(6, dtype=torch.float64))
    bare.register_buffer("variance", torch.ones(6, dtype=torch.float64))
    x = rand(20, 4)
    done = after(without(bare, x, {"a.weight": [0]}), [x], RecalibratePass())
    with torch.no_grad():
        assert torch.allclose(done.module.get_buffer("mean"), done.module.get_submodule("a")(x).mean(0))


def test_a_model_without_statistics_is_refused() -> None:
    x = rand(4, 4)
    bare = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with pytest.raises(UsageError, match="no batch norm"):
        after(without(bare, x, {"0.weight": [0]}), [x], RecalibratePass())
