"""Couplings: what ties the slices of a group, read off the trace."""

from __future__ import annotations

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from graphprune.channels.couplings import couplings, layers
from graphprune.channels.groups import Group
from tests.checking import Analysed, analyse
from tests.zoo import test_zoo
from tests.zoo.case import CASES

assert test_zoo  # registers all structures


def tied(found: Analysed, group: Group) -> nx.Graph:
    """The tensors of a group, with an edge for each pair that an operator is said to tie."""
    graph = nx.Graph()
    graph.add_nodes_from(member.tensor for member in group.members)
    for one in couplings(found.groups, found.program.module.graph, group):
        graph.add_edges_from((a, b) for a in one.tensors for b in (*one.tensors[:1], *one.with_))
    return graph


@pytest.mark.parametrize("name", CASES)
def test_the_operators_named_account_for_all_that_a_group_ties(name: str) -> None:
    """Their ties alone connect all tensors of each prunable group, and no others."""
    built = CASES[name]()
    found = analyse(built.model, built.inputs(2), policy=built.policy)
    for group in found.groups.prunable:
        graph = tied(found, group)
        assert set(graph) == {member.tensor for member in group.members}
        assert nx.is_connected(graph), f"{group.name}: {list(nx.connected_components(graph))}"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.body, self.out = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        y: Tensor = self.out(x + self.body(x).relu())
        return y


def test_each_tie_is_told_by_what_it_does_and_where() -> None:
    found = analyse(Residual(), torch.zeros(1, 3, 4, 4))
    told = couplings(found.groups, found.program.module.graph, found.groups.prunable[0])
    seen = [(one.kind, one.node, layers(one.tensors), layers(one.with_)) for one in told]
    assert [entry for entry in seen if entry[2] != entry[3]] == [
        ("holds", "norm", ("norm",), ("stem",)),
        ("reads", "body", ("body",), ("stem",)),
        ("combines", "add", ("body",), ("stem",)),
        ("reads", "out", ("out",), ("stem",)),
    ]
    lines = {one.node: int(one.source.rpartition(":")[2]) for one in told}
    assert lines["add"] == lines["norm"] + 1 and all(one.source.split(":")[0] == __file__ for one in told)
    assert {one.operator for one in told if one.node == "add"} == {"aten::add"}


def test_slices_of_one_layer_that_go_together_are_told_apart() -> None:
    """Same channels of every convolution group; a plain convolution has none."""
    grouped = analyse(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4))
    plain = analyse(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)), torch.zeros(1, 3, 4, 4))
    kinds = [
        {one.kind for group in found.groups.prunable for one in couplings(found.groups, found.program.module.graph, group)}
        for found in (grouped, plain)
    ]
    assert "arranges" in kinds[0] and "arranges" not in kinds[1]
