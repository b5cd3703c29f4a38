"""Which layers of a graph are gathered together; what two processes make of it is tested in training/test_data_parallel.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graphprune.placement import fsdp


class _Net(nn.Module):
    """Layers that are called once, called twice, read from outside, tied, or without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.read, self.last = (nn.Linear(4, 4) for _ in range(4))
        self.tied = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Shapes (n, 4) and (n, 4)."""
        x = self.twice(self.relu(self.twice(self.first(x))))
        x = self.read(x) + F.linear(x, self.read.weight)
        result: Tensor = self.last(self.tied(self.other(x)))
        return result


def _names(model: nn.Module) -> list[list[str]]:
    names = {module: name for name, module in model.named_modules()}
    return [[names[layer] for layer in block] for block in fsdp.blocks(model)]


def test_layers_that_are_called_once_and_shared_with_nothing_are_gathered_as_they_are_called() -> None:
    assert _names(fx.symbolic_trace(_Net())) == [["first", "last"]]


def test_blocks_end_where_they_are_large() -> None:
    wide = nn.Sequential(*(nn.Linear(1500, 1500, device="meta") for _ in range(5)))
    assert _names(fx.symbolic_trace(wide)) == [["0", "1"], ["2", "3"], ["4"]]


def test_nothing_is_known_of_the_calls_of_other_modules() -> None:
    assert fsdp.blocks(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))) == []
    assert fsdp.blocks(fx.symbolic_trace(torch.nn.ReLU())) == []
