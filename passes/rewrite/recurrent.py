"""Recurrent calls, which tell from the widths of their operands what they are."""

from __future__ import annotations

import operator
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx

from graphprune.resizers import Site, resize_call

_GATES: Final = 4


@resize_call(torch.lstm, torch.ops.aten.lstm.input, torch.ops.aten.lstm.data)
def projected(site: Site) -> None:
    """An LSTM with projections has states of two widths, and torch takes two that are equal for one without.

    Where a plan makes them equal, the cell gets one unit more, made of zeros: it stays zero and adds nothing to the projection.
    """
    node, graph = site.node, site.node.graph
    args: list[Any] = list(node.args)
    at = 1 if isinstance(args[1], (tuple, list)) else 2  # behind a packed sequence's batch sizes
    (hidden, cell), weights = args[at], args[at + 1]
    width = site.new_shape(cell)[-1]
    if site.old_shape(hidden)[-1] == site.old_shape(cell)[-1] or site.new_shape(hidden)[-1] != width:
        return
    per_layer = 5 if args[at + 2] else 3
    with graph.inserting_before(node):
        args[at] = (hidden, _padded(cell))
        args[at + 1] = [
            _padded(weight) if index % per_layer == per_layer - 1 else _padded_gates(site, weight, width)
            for index, weight in enumerate(weights)
        ]
    node.args = tuple(args)
    for result in [user for user in node.users if user.args[1:] == (2,)]:
        with graph.inserting_before(result):
            longer = graph.call_function(operator.getitem, (node, 2))
        result.args = (longer, (..., slice(None, width)))  # type: ignore[assignment]


def _padded(tensor: fx.Node) -> fx.Node:
    return tensor.graph.call_function(F.pad, (tensor, (0, 1)))


def _padded_gates(site: Site, weight: fx.Node, width: int) -> fx.Node:
    """Rows of the four gates, each with one more of zeros."""
    graph = weight.graph
    rows = graph.call_method("unflatten", (weight, 0, (_GATES, width)))
    behind = (0, 1) if len(site.new_shape(weight)) == 1 else (0, 0, 0, 1)
    return graph.call_method("flatten", (graph.call_function(F.pad, (rows, behind)), 0, 1))
