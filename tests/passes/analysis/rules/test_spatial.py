"""Pooling, resampling and spatial padding work on each channel by itself: channels pass, space stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.analysis.rules.observing import observe

LINE: list[Callable[[Tensor], Any]] = [
    lambda t: F.max_pool1d(t, 2),
    lambda t: F.avg_pool1d(t, 2),
    lambda t: F.adaptive_avg_pool1d(t, 2),
    lambda t: F.interpolate(t, scale_factor=2.0, mode="linear"),
    lambda t: F.pad(t, (1, 2), mode="reflect"),
]
PLANE: list[Callable[[Tensor], Any]] = [
    lambda t: F.max_pool2d(t, 2),
    lambda t: F.max_pool2d(t, 3, 2, 1, ceil_mode=True),
    lambda t: F.max_pool2d(t, 2, return_indices=True)[0],
    lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), [2, 2]),
    lambda t: F.avg_pool2d(t, 2),
    lambda t: F.adaptive_avg_pool2d(t, (2, 1)),
    lambda t: F.adaptive_max_pool2d(t, 2),
    lambda t: F.interpolate(t, scale_factor=2),
    lambda t: F.interpolate(t, size=(3, 9), mode="bilinear", align_corners=False),
    lambda t: F.interpolate(t, scale_factor=0.5, mode="bicubic", antialias=True),
    lambda t: F.pad(t, (1, 1, 1, 1), mode="reflect"),
    lambda t: F.pad(t, (1, 0, 0, 1), mode="replicate"),
]
VOLUME: list[Callable[[Tensor], Any]] = [
    lambda t: F.max_pool3d(t, 2),
    lambda t: F.max_unpool3d(*F.max_pool3d(t, 2, return_indices=True), [2, 2, 2]),
    lambda t: F.avg_pool3d(t, 2),
    lambda t: F.adaptive_avg_pool3d(t, 2),
    lambda t: F.interpolate(t, scale_factor=2, mode="trilinear"),
]
CALLS = [(rank, f) for rank, calls in ((1, LINE), (2, PLANE), (3, VOLUME)) for f in calls]


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("rank", [2, 3])
def test_unpooling_keeps_space_whole_with_and_without_a_batch(batch: tuple[int, ...], rank: int) -> None:
    unpool = F.max_unpool2d if rank == 2 else F.max_unpool3d
    t = torch.randn(*batch, 3, *[4] * rank)
    seen = observe(lambda t: unpool(t, (t * 0).long(), [2] * rank), t=t)
    for axis in range(len(batch) + 1):
        assert seen.result_atoms(axis) == seen.atoms("t", axis)
    assert seen.frozen == {atom for axis in range(len(batch) + 1, t.dim()) for atom in seen.atoms("t", axis)}


@pytest.mark.parametrize(("rank", "function"), CALLS)
def test_channels_and_batch_pass_and_space_stays(rank: int, function: Callable[[Tensor], Any]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(2, 3, *[4] * rank))
    assert seen.result_atoms(1) == seen.atoms("t", 1) and seen.result_atoms(0) == seen.atoms("t", 0)
    assert seen.frozen == {atom for axis in range(2, 2 + rank) for atom in seen.atoms("t", axis)}
    assert not seen.classes and not seen.statistics


@pytest.mark.parametrize("function", PLANE[:6])
def test_without_a_batch_the_channels_come_first(function: Callable[[Tensor], Any]) -> None:
    seen = observe(lambda t: function(t), t=torch.randn(3, 4, 4))
    assert seen.result_atoms(0) == seen.atoms("t", 0)
    assert seen.frozen == set(seen.atoms("t", 1) + seen.atoms("t", 2))


def test_sampling_passes_channels_and_fixes_places() -> None:
    seen = observe(lambda t, g: F.grid_sample(t, g, align_corners=False), t=torch.randn(2, 3, 4, 4), g=torch.rand(2, 5, 5, 2))
    assert seen.result_atoms(1) == seen.atoms("t", 1) and not seen.frozen & set(seen.atoms("t", 1))
    assert seen.frozen >= {atom for axis in range(4) for atom in seen.atoms("g", axis)} | set(seen.atoms("t", 2))
