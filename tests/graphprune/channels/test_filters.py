"""Filters: which parameters make the channels of a unit and which read them, whatever the layers are called."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from graphprune.channels.filters import find_filters, taps_of
from tests.checking import analyse
from tests.zoo.case import net


def roles(model: nn.Module, inputs: Any, **options: Any) -> set[tuple[str, int, str, str | None]]:
    """(tensor, axis, makes or reads, node of the activation) of every filter."""
    found = analyse(model.float(), inputs, **options)
    filters = find_filters(found.program, found.groups)
    return {(f.tensor, f.axis, "makes" if f.makes else "reads", f.tap.node if f.tap else None) for f in filters}


def test_a_residual_stream_is_made_and_read_by_each_block() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        y = F.relu(y + self.b(y))
        return self.head(y)

    model = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 3, padding=1), head=nn.Conv2d(8, 4, 1))
    assert roles(model, torch.zeros(1, 3, 4, 4)) == {
        ("a.weight", 0, "makes", "a"),
        ("b.weight", 0, "makes", "b"),
        ("b.weight", 1, "reads", "relu"),
        ("head.weight", 1, "reads", "relu_1"),
    }


def test_depthwise_kernels_make_and_norms_and_vectors_do_neither() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    assert roles(model, torch.zeros(1, 3, 8, 8)) == {
        ("0.weight", 0, "makes", "_0"),
        ("2.weight", 0, "makes", "_2"),
        ("4.weight", 1, "reads", "_3"),
    }


def test_weights_that_are_computed_count_by_what_they_are_computed_from() -> None:
    """Weight normalisation makes the weight from a direction and lengths: the direction is the filter."""
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
    found = roles(nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    assert ("2.weight", 1, "reads", "_1") in found
    makers = {(tensor, axis) for tensor, axis, role, _ in found if role == "makes"}
    assert makers and all(tensor.startswith("0.parametrizations") and axis == 0 for tensor, axis in makers)


def test_functional_and_transposed_products() -> None:
    """The axis of a weight that is computed, if only transposed, is that of the result."""

    def forward(self: Any, x: Tensor) -> Any:
        return F.relu(x @ self.first) @ self.second.t()

    model = net(forward, first=nn.Parameter(torch.randn(4, 8)), second=nn.Parameter(torch.randn(2, 8)))
    assert roles(model, torch.zeros(3, 4)) == {("first", 1, "makes", "matmul"), ("second", 0, "reads", "relu")}


def test_transposed_convolutions_exchange_the_axes() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 2), nn.ReLU(), nn.ConvTranspose2d(8, 4, 2))
    assert roles(model, torch.zeros(1, 3, 4, 4)) == {("0.weight", 1, "makes", "_0"), ("2.weight", 0, "reads", "_1")}


def test_an_embedding_makes_the_width_of_tokens() -> None:
    def forward(self: Any, ids: Tensor) -> Any:
        return self.head(self.table(ids))

    model = net(forward, table=nn.Embedding(10, 8), head=nn.Linear(8, 4))
    ids = torch.zeros(1, 3, dtype=torch.int64)
    assert roles(model, ids) == {("table.weight", 1, "makes", "table"), ("head.weight", 1, "reads", "table")}


def test_heads_are_units_of_the_activation_that_the_projection_reads() -> None:
    attention = nn.MultiheadAttention(16, 4, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.stem = attention, nn.Linear(6, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = self.stem(x)
            found: Tensor = self.attention(y, y, y, need_weights=False)[0]
            return found

    found = analyse(Self(), torch.zeros(2, 5, 6))
    filters = find_filters(found.program, found.groups)
    (out,) = [f for f in filters if f.tensor == "attention.out_proj.weight" and not f.makes]
    assert out.tap is not None and out.tap.units.tolist() == out.units.tolist()
    assert [len(set(out.units[start : start + 4].tolist())) for start in range(0, 16, 4)] == [1, 1, 1, 1]


def test_taps_are_each_activation_once() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = F.relu(self.a(x))
        return self.b(y) + self.c(y)

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), c=nn.Linear(8, 2))
    found = analyse(model.float(), torch.zeros(3, 4))
    filters = find_filters(found.program, found.groups)
    assert [tap.node for tap in taps_of(filters, "consumed")] == ["relu"]
    assert [tap.node for tap in taps_of(filters, "produced")] == ["a"]


@pytest.mark.parametrize("groups", [1, 2])
def test_costs_of_filters(groups: int) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=groups), nn.ReLU(), nn.Conv2d(8, 4, 1))
    found = analyse(model, torch.zeros(1, 4, 5, 5))
    first = find_filters(found.program, found.groups)[0]
    assert (first.tensor, first.elements, first.macs) == ("0.weight", 8 * 4 * 9 // groups, 8 * 4 * 9 * 9 // groups)
