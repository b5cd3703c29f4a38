"""Structures that read and write where data say: graph networks, which sum messages by edge, and bags of embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.case import Case, case, net

NODES = 6


def graph(batch: int) -> tuple[Tensor, Tensor]:
    """Features of nodes, and edges from and to them; the last two nodes have none."""
    return torch.randn(NODES * batch, 3, dtype=torch.float64), torch.randint(0, NODES * batch - 2, (2, 4 * NODES * batch))


def summed(message: Tensor, to: Tensor, like: Tensor) -> Tensor:
    """As torch_geometric adds messages: into zeros, by an index that is expanded to the features."""
    index = to.view(-1, 1).expand_as(message)
    return message.new_zeros(like.shape[:1] + message.shape[1:]).scatter_add_(0, index, message)


@case
def messages_summed_by_edge() -> Case:
    def forward(self: Any, x: Tensor, edges: Tensor) -> Any:
        h = self.a(x).relu()
        h = self.b(summed(h.index_select(0, edges[0]), edges[1], h) + h).relu()
        count = h.new_zeros(h.shape[0]).scatter_add_(0, edges[1], h.new_ones(edges.shape[1])).clamp(min=1)
        return self.c(summed(h[edges[0]], edges[1], h) / count.view(-1, 1).expand_as(h))

    model = net(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2))
    return Case(model, graph, {"a": 8, "b": 6})


@case
def messages_added_and_compared_by_index() -> Case:
    def forward(self: Any, x: Tensor, edges: Tensor) -> Any:
        h = self.a(x)
        added = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])
        largest = h.scatter_reduce(0, edges[1].unsqueeze(1).expand(-1, h.shape[1]), h[edges[0]], "amax")
        return self.b(torch.cat([added, largest], 1))

    return Case(net(forward, a=nn.Linear(3, 8), b=nn.Linear(16, 2)), graph, {"a": 8})


@case
def bags_of_embeddings() -> Case:
    """DLRM's: sparse features that are summed, beside dense ones, and products of all pairs."""

    def forward(self: Any, x: Tensor, indices: Tensor, offsets: Tensor) -> Any:
        dense = self.bottom(x)
        features = torch.stack([dense, self.first(indices, offsets), self.second(indices, offsets)], 1)
        return self.top(torch.cat([dense, torch.bmm(features, features.transpose(1, 2)).flatten(1)], 1))

    def inputs(batch: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(batch, 3, dtype=torch.float64)
        return x, torch.randint(0, 9, (3 * batch,)), torch.arange(0, 3 * batch, 3).clamp(max=3 * batch - 3)

    bags = {name: nn.EmbeddingBag(9, 8, mode=mode) for name, mode in (("first", "sum"), ("second", "mean"))}
    model = net(forward, bottom=nn.Linear(3, 8), top=nn.Linear(17, 2), **bags)
    return Case(model, inputs, {"bottom": 8}, {("first.weight", 0): "indexed by data"})
