"""Exported programs: the constants of ATen calls follow the widths as those of functions and methods do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from tests.zoo.case import net


def _shapes(self: Any, x: Tensor) -> Tensor:
    """Fixed-size views, slices, paddings, splits and a shuffle."""
    y = F.relu(self.stem(x))
    y = y.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6)
    left, right = y.split([3, 5], 1)
    y = torch.cat((right, F.pad(left, (0, 0, 0, 0, 1, 1))), 1)
    y = self.depthwise(self.wide(y))
    y = y[:, 2:10] + y[:, 4:12]
    scores: Tensor = self.head(self.norm(y.mean((2, 3))))
    return scores


def _attention(self: Any, x: Tensor) -> Tensor:
    """Fused queries, keys and values, by fixed sizes."""
    qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(2, 36, 3, 4, 2).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
    scores: Tensor = self.head(y.transpose(1, 2).reshape(2, 36, 8).mean(1))
    return scores


NETS = {
    "shapes": lambda: net(
        _shapes,
        stem=nn.Conv2d(3, 8, 3, padding=1),
        wide=nn.Conv2d(10, 12, 1),
        depthwise=nn.Conv2d(12, 12, 3, groups=12),
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 5),
    ),
    "attention": lambda: net(_attention, qkv=nn.Linear(3, 24), head=nn.Linear(8, 5)),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_an_exported_program_is_pruned_as_the_model_is(name: str, seed: int) -> None:
    model = NETS[name]().double().eval()
    image = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    exported: Any = torch.export.export(model, (image,)).module(check_guards=False)
    options: dict[str, Any] = {"target": "channels=60%", "criterion": "random", "seed": seed}
    wanted = graphprune.prune(model, image, **options)
    found = graphprune.prune(exported, image, **options)
    assert found.report.verification is not None and found.report.verification.error < 1e-10
    assert found.report.after.parameters < found.report.before.parameters == wanted.report.before.parameters
    assert sum(p.numel() for p in found.model.parameters()) == found.report.after.parameters
    assert found.model(image).shape == (2, 5)
