"""``bn-scale``: the scales of a unit's normalisations, found by the operators that use them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.errors import UsageError
from tests.passes.scoring.scored import chain, images, scored
from tests.zoo.case import conv, net


def test_by_hand() -> None:
    model: Any = chain()
    with torch.no_grad():
        model.norm.weight[1] *= -1.0
    assert scored(model, images(2), "bn-scale")["a"] == pytest.approx(model.norm.weight.detach().abs().numpy(), rel=1e-15)


def test_only_scales_count() -> None:
    model: Any = chain()
    before = scored(model, images(2), "bn-scale")
    with torch.no_grad():
        for tensor in (model.a.weight, model.norm.bias, model.norm.running_var, model.b.weight):
            tensor.mul_(2.0)
    assert (scored(model, images(2), "bn-scale")["a"] == before["a"]).all()
    with torch.no_grad():
        model.norm.weight[2] = 0.0
    assert scored(model, images(2), "bn-scale")["a"].argmin() == 2


def test_norms_of_a_group_are_reduced() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.one(self.a(x))
        return self.head((x + self.two(self.b(x))).mean((2, 3)))

    model: Any = net(forward, a=conv(3, 5), one=nn.BatchNorm2d(5), b=conv(5, 5), two=nn.BatchNorm2d(5), head=nn.Linear(5, 3))
    mean = ((model.one.weight.abs() + model.two.weight.abs()) / 2).detach().numpy()
    assert scored(model, images(2), "bn-scale")["a"] == pytest.approx(mean, rel=1e-12)
    largest = torch.maximum(model.one.weight.abs(), model.two.weight.abs()).detach().numpy()
    assert scored(model, images(2), "bn-scale", reduction="max")["a"] == pytest.approx(largest, rel=1e-12)


def _functional(self: Any, x: Tensor, scale: Tensor) -> Tensor:
    return F.batch_norm(x, self.mean, self.var, scale)


def _spelled(self: Any, x: Tensor, scale: Tensor) -> Tensor:
    return (x - x.mean(1, True)) / torch.sqrt(x.var(1, keepdim=True) + 1e-5) * scale.view(1, -1, 1, 1)


def _root_mean_square(self: Any, x: Tensor, scale: Tensor) -> Tensor:
    return F.rms_norm(x.movedim(1, -1), (5,), scale).movedim(-1, 1)


NORMS: dict[str, Any] = {
    "batch": _functional,
    "spelled out": _spelled,
    "root mean square": _root_mean_square,
    "layer": lambda self, x, scale: F.layer_norm(x.movedim(1, -1), (5,), scale).movedim(-1, 1),
    "group": lambda self, x, scale: F.group_norm(x, 5, scale),
    "instance": lambda self, x, scale: F.instance_norm(x, weight=scale),
}


@pytest.mark.parametrize("kind", NORMS)
def test_functional_norms_whatever_their_scale_is_called(kind: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.b(F.relu(NORMS[kind](self, self.a(x), self.loudness) * self.weight.view(1, -1, 1, 1)))

    parts = {"loudness": nn.Parameter(torch.randn(5)), "weight": nn.Parameter(torch.randn(5))}  # the latter scales no norm ...
    model: Any = net(forward, a=conv(3, 5), b=conv(5, 2), **parts)
    model.register_buffer("mean", torch.zeros(5, dtype=torch.float64))
    model.register_buffer("var", torch.ones(5, dtype=torch.float64))
    assert scored(model, images(2), "bn-scale")["a"] == pytest.approx(model.loudness.detach().abs().numpy(), rel=1e-12)


def test_units_without_a_norm_have_no_score_and_stay_longest() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))

    model: Any = net(forward, a=conv(3, 5), norm=nn.BatchNorm2d(5), b=conv(5, 4), c=conv(4, 2))
    found = scored(model, images(2), "bn-scale")
    assert np.isfinite(found["a"]).all() and np.isnan(found["b"]).all()


def test_a_model_without_norms_is_an_error() -> None:
    with pytest.raises(UsageError, match="bn-scale has nothing to say about any channel"):
        scored(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.zeros(1, 4), "bn-scale")
