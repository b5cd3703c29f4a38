"""The graph of layers: what is drawn, what is folded, what feeds what."""

from __future__ import annotations

import torch
from torch import nn

import graphprune
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.reporting.layers import Layer, layer_graph, layer_of


class Net(nn.Module):
    """A residual block, with a bare parameter and a size that is read from a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.a(x)).relu()
        z = (y + self.b(y)) * self.scale
        flat: torch.Tensor = z.reshape(x.shape[0], -1)
        return flat


def graph(model: nn.Module) -> dict[str, Layer]:
    program = graphprune.capture(model, torch.zeros(2, 3, 4, 4))
    return layer_graph(program, AnalysisManager().get(program, ChannelGroups))


def test_calls_without_parameters_are_taken_out_but_for_those_that_join_layers() -> None:
    layers = graph(Net())
    assert {key: layer.sources for key, layer in layers.items()} == {
        "x": [],
        "a": ["x"],
        "b": ["a"],
        "add": ["a", "b"],
        "scale": ["add"],
        "output": ["scale"],
    }
    assert [layer.kind for layer in layers.values()] == ["input", "layer", "layer", "join", "layer", "output"]


def test_a_norm_is_folded_into_the_layer_before_it_only_where_nothing_else_reads_that() -> None:
    assert graph(Net())["a"].folded == ["norm"]

    class Twice(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            z: torch.Tensor = self.norm(y) + self.b(y)
            return z

    layers = graph(Twice())
    assert layers["a"].folded == [] and layers["norm"].sources == ["a"]


def test_a_tensor_of_a_module_with_modules_in_it_is_a_layer_of_its_own() -> None:
    program = graphprune.capture(Net(), torch.zeros(2, 3, 4, 4))
    assert [layer_of(name, program) for name in ("a.weight", "norm.running_mean", "scale")] == ["a", "norm", "scale"]
