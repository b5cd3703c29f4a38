"""Slices of parameters, cut by blocks where a layer is large."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import graphprune
from graphprune.passes.rewrite import rewrite as rewriter


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_large_layer_keeps_the_weights_of_its_kept_units(layout: torch.memory_format) -> None:
    """Of a convolution with 4.5 million weights, cut along both axes: exactly those, in its layout."""
    first, large, last = nn.Conv2d(2, 700, 1), nn.Conv2d(700, 720, 3), nn.Conv2d(720, 2, 1)
    model = nn.Sequential(first, large, last).to(memory_format=layout)
    result = graphprune.prune(model, torch.zeros(1, 2, 5, 5), target="channels=35%", ranking="local")
    made, read = map(torch.tensor, result.plan.kept["1.weight"].values())
    slim = result.model.get_parameter("1.weight")
    assert slim.shape == (251, 245, 3, 3)
    assert torch.equal(slim, large.weight[made][:, read])
    assert slim.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("few", [0, 2**14], ids=["by blocks", "axis by axis"])
def test_a_layer_cut_along_both_axes_keeps_the_same_weights_either_way(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut in blocks of two rows, with one row left over, it is as it is cut one axis after the other."""
    monkeypatch.setattr(rewriter, "_FEW", few)
    monkeypatch.setattr(rewriter, "_BLOCK", 2 * 8 * 9)
    model = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Conv2d(8, 10, 3), nn.Conv2d(10, 2, 1))
    result = graphprune.prune(model, torch.zeros(1, 2, 4, 4), target="channels=50%", ranking="local")
    made, read = map(torch.tensor, result.plan.kept["1.weight"].values())
    assert (len(made), len(read)) == (5, 4)
    assert torch.equal(result.model.get_parameter("1.weight"), model.get_parameter("1.weight")[made][:, read])
