"""Copies of graphs, and of graph modules whose tensors a pass may write into."""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from graphprune.ir.graph_module import add_node, adopt
from graphprune.ir.twins import twin


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy of a graph, and its nodes by those of the original (``fx.Graph.graph_copy`` takes twice as long)."""
    result = fx.Graph(tracer_cls=graph._tracer_cls)
    copied: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        args, kwargs = map_arg(node.args, copied.__getitem__), map_arg(node.kwargs, copied.__getitem__)
        copied[node] = new = add_node(result, node.op, node.target, args, kwargs, node.name, node.type)
        new.meta.update(node.meta)
    return result, copied


def copy_of(module: fx.GraphModule) -> fx.GraphModule:
    """A graph module with tensors of its own, and the graph, names, modes and tying of another."""

    def fresh(tensor: Tensor) -> Tensor:
        value = tensor.detach().clone()
        return torch.nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else value

    graph, _ = copy_graph(module.graph)
    return adopt(twin(module, fresh), graph, type(module).__name__)
