"""Arithmetic with unknown data: what it says is constant does not change with the input, and NaN is never lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from graphprune.passes.calibration.known import TRANSPARENT, UnknownData

ELEMENTWISE: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": torch.neg,
    "exp": torch.exp,
    "log": torch.log,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "abs": torch.abs,
    "reciprocal": torch.reciprocal,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "mish": F.mish,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
    "elu": F.elu,
    "leaky_relu": F.leaky_relu,
    "hardtanh": F.hardtanh,
    "clamp": lambda x: x.clamp(0, 6),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "_prelu_kernel": lambda x: F.prelu(x, torch.tensor([0.1], dtype=x.dtype)),
    "mul": lambda x: x * 0,
    "add": lambda x: x + 1,
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ELEMENTWISE)
def test_transparent_operators_pass_nan_on(name: str, dtype: torch.dtype) -> None:
    assert f"aten::{name}" in TRANSPARENT
    x = torch.rand(3, 40, dtype=dtype) + 0.5
    x[1] = torch.nan
    found = ELEMENTWISE[name](x)
    assert bool(found[1].isnan().all()) and not bool(found[::2].isnan().any())


def known(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What is not NaN, when the input is unknown; checked against two real inputs."""
    with torch.no_grad():
        with UnknownData() as unknown:
            found = model(unknown.hide(x.clone()))
        for seed in (0, 1):
            real = model(
                torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype) if x.is_floating_point() else x
            )
            assert torch.allclose(found[~found.isnan()], real[~found.isnan()])
    return ~found.isnan()


def test_a_channel_behind_weights_of_zero_is_its_bias() -> None:
    convolution = nn.Conv2d(2, 4, 3, padding=1).double()
    with torch.no_grad():
        convolution.weight[1] = 0
        convolution.weight[2, 0] = 0  # still reads the other
    found = known(lambda x: F.hardswish(convolution(x)), torch.zeros(2, 2, 5, 5, dtype=torch.float64))
    assert found.all((0, 2, 3)).tolist() == [False, True, False, False] == found.any((0, 2, 3)).tolist()


def test_a_norm_with_a_scale_of_zero_makes_a_constant_and_what_reads_only_constants_is_one() -> None:
    norm, linear = nn.BatchNorm1d(3).double().eval(), nn.Linear(3, 2).double()
    with torch.no_grad():
        norm.weight[:] = torch.tensor([0.0, 1.0, 0.0])
        linear.weight[0, 1] = 0
    assert known(norm, torch.zeros(4, 3, dtype=torch.float64)).all(0).tolist() == [True, False, True]
    assert known(lambda x: linear(norm(x)), torch.zeros(4, 3, dtype=torch.float64)).all(0).tolist() == [True, False]


def test_comparisons_and_integers_do_not_pass_for_known() -> None:
    x = torch.zeros(4, 3, dtype=torch.float64)
    assert not known(lambda x: torch.where(x > 0, 1.0, 2.0), x).any()
    assert not known(lambda x: (x > 0).double(), x).any()
    assert not known(lambda x: x.argmax(1).double() * 2, x).any()
    with UnknownData() as unknown:
        table = nn.Embedding(5, 3).double()
        found = table(unknown.hide(torch.zeros(2, dtype=torch.long)))
    assert bool(found.isnan().all())


def test_an_operator_that_nan_would_lead_astray_sees_none_and_is_unknown() -> None:
    """The kernel of deformable convolutions reads out of bounds at offsets of NaN."""
    weight, offset = torch.rand(2, 3, 3, 3, dtype=torch.float64), torch.zeros(1, 18, 4, 4, dtype=torch.float64)
    with UnknownData() as unknown:
        found = deform_conv2d(torch.ones(1, 3, 6, 6, dtype=torch.float64), unknown.hide(offset), weight)
    assert bool(found.isnan().all())


def test_writes_of_unknown_data_are_seen_through_views() -> None:
    with torch.no_grad(), UnknownData() as unknown:
        x = unknown.hide(torch.zeros(3, dtype=torch.float64))
        base = torch.ones(2, 3, dtype=torch.float64)
        base.as_strided((3,), (1,), 3).copy_(x)
    assert base.isnan().tolist() == [[False] * 3, [True] * 3]
