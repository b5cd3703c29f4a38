"""Sizes that a view takes from another tensor: with the policy ``sizes`` the two lose the same positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.channels.borrowed import borrowed
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager

X = torch.randn(2, 5, 6)


class Block(nn.Module):
    """Attention as timm writes it: what the heads make is as wide as what came in, and is said to be."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.stem, self.norm = 4, nn.Linear(6, 16), nn.LayerNorm(16)
        self.qkv, self.proj, self.head = nn.Linear(16, 48), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        n, length, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(n, length, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, length, c)
        return self.head(x + self.proj(y))


def found(policy: dict[str, str]) -> Any:
    """The groups of a block."""
    program = graphprune.capture(Block(), X).with_(policy=policy)
    return AnalysisManager().get(program, ChannelGroups)


def test_a_size_alone_and_one_that_others_make_up_are_found() -> None:
    """Of what the heads make, on one axis and on two; sizes of the tensor itself are no news."""
    program = graphprune.capture(Block(), X)
    values = AnalysisManager().get(program, ChannelGroups).trace.values
    shapes = {node.name: [other.shape for _, other in borrowed(node, values)] for node in program.module.graph.nodes}
    assert shapes.pop("reshape") == [(1, 1, 1, 4, 4)]
    assert shapes.pop("reshape_1") == [(1, 1, 16)]
    assert not any(shapes.values())


def test_tied_sizes_are_one_group_and_free_ones_are_two() -> None:
    """A head goes with four channels of the stream; the couplings name the view."""
    free, tied = found({}), found({"sizes": "tied"})
    assert [group.size for group in free.prunable] == [16, 4]
    (group,) = tied.prunable
    assert group.size == 4
    assert {"sizes"} <= {by.operator for by in tied.trace.tied}


@pytest.mark.parametrize("heads", ["whole", "head_dim"])
def test_a_plan_of_tied_sizes_is_proved(heads: str) -> None:
    """By the oracle, which knows no labels; the graph computes its sizes as before."""
    result = graphprune.prune(Block(), X, target="channels=50%", policy={"sizes": "tied", "heads": heads})
    proof = result.report.verification
    assert proof is not None and proof.passed
    assert result.graph.get_submodule("stem").out_features == result.graph.get_submodule("proj").in_features == 8
    assert result.model(torch.randn(3, 7, 6)).shape == (3, 7, 3)
