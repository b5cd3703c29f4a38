"""Filters whose weights the graph computes from parameters, and weights of a single row or column."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from graphprune.channels.filters import Filter, find_filters
from tests.checking import analyse
from tests.passes.scoring.scored import images
from tests.zoo.case import conv, net


def test_biases_and_norms_are_no_filters_and_a_single_row_or_column_is_one() -> None:
    """The head has one output, and the first layer one input."""

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(F.relu(self.norm(self.a(x)) * self.scale))

    scale = nn.Parameter(torch.randn(1, 6))
    model = net(forward, a=nn.Linear(1, 6), norm=nn.LayerNorm(6), scale=scale, head=nn.Linear(6, 1))
    found = analyse(model, torch.zeros(2, 1, dtype=torch.float64))
    filters = find_filters(found.program, found.groups)
    assert [(f.tensor, f.axis, f.makes) for f in filters] == [("a.weight", 0, True), ("head.weight", 1, False)]


def low_rank(self: Any, x: Tensor) -> Tensor:
    """A weight and what was learnt on top of it."""
    return F.linear(x, self.weight + self.up @ self.down)


def parts(self: Any, x: Tensor) -> Tensor:
    """Two halves of one weight, used apart."""
    first, second = self.weight.chunk(2)
    return F.linear(x, first) + F.linear(x, second)


def transposed(self: Any, x: Tensor) -> Tensor:
    found: Tensor = x @ self.weight.t()
    return found


COMPUTED = {
    "low rank": (low_rank, 6, [("weight", 0, "makes"), ("weight", 1, "reads")]),
    "parts": (parts, 12, [("weight", 0, "makes"), ("weight", 1, "reads")] * 2),
    "transposed": (transposed, 6, [("weight", 1, "makes"), ("weight", 0, "reads")]),
}


@pytest.mark.parametrize("kind", COMPUTED)
def test_weights_that_the_graph_computes(kind: str) -> None:
    """The filter is the weight as it is used: axes and elements are those of the result."""
    layer, outputs, wanted = COMPUTED[kind]

    def forward(self: Any, x: Tensor) -> Any:
        return self.head(F.relu(layer(self, F.relu(self.a(x)))))

    shapes = {"weight": (outputs, 5), "up": (6, 2), "down": (2, 5)}
    weights = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    found = analyse(net(forward, a=nn.Linear(4, 5), head=nn.Linear(6, 2), **weights), torch.zeros(3, 4, dtype=torch.float64))
    filters = [f for f in find_filters(found.program, found.groups) if f.tensor == "weight"]
    assert sorted((f.tensor, f.axis, "makes" if f.makes else "reads") for f in filters) == sorted(wanted)
    assert all(f.weight and f.elements == 30 for f in filters)


def test_a_parametrised_layer_that_runs_twice_is_one_weight() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = F.relu(self.a(x))
        return self.head(F.relu(self.b(F.relu(self.b(x)))).mean((2, 3)))

    model = net(forward, a=conv(3, 5), b=parametrizations.weight_norm(conv(5, 5)), head=nn.Linear(5, 2))
    filters: list[Filter] = [f for f in find_filters(*_found(model)) if f.makes and f.weight]
    assert len(filters) == 2 and len({f.weight for f in filters}) == 1 and len({f.node for f in filters}) == 2


def _found(model: nn.Module) -> tuple[Any, Any]:
    found = analyse(model, images(2))
    return found.program, found.groups
