"""What is known of a model whose weights are elsewhere: what it is without that, where its values are, how a slim one follows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, fx, nn

from graphprune.ir.graph_module import adopt
from graphprune.ir.twins import named_tensors, twin
from graphprune.ir.weights import Weights


class Placement(ABC):
    """A model whose weights are elsewhere. plain: a copy of its modules as they were before, with meta tensors for what is
    elsewhere; tied tensors are one."""

    plain: nn.Module

    @abstractmethod
    def weights(self, module: nn.Module) -> Weights:
        """The values of a module that has tensors of the plain model, under their names."""

    @abstractmethod
    def place(self, slim: fx.GraphModule, weights: Weights) -> fx.GraphModule:
        """The slim model with its weights where the model has its own; one tensor at a time is whole in memory.

        slim: on the meta device but for what the model has in memory, too. weights: its values.
        """


def without(module: nn.Module, unwanted: Callable[[Any], bool]) -> None:
    """Take hooks of some kind off a module, and leave its twin alone: it has lists of its own afterwards."""
    for key, value in module.__dict__.items():
        if key.endswith("_hooks") and isinstance(value, dict):
            kept = value.copy()
            for handle in [handle for handle, hook in value.items() if unwanted(hook)]:
                del kept[handle]
            module.__dict__[key] = kept


def with_values(graph: fx.GraphModule, placement: Placement | None) -> fx.GraphModule:
    """A graph whose tensors have the values of a placed model, in memory; the graph itself where there is none."""
    if placement is None:
        return graph
    weights = placement.weights(graph)
    names = {id(tensor): name for name, tensor in reversed(named_tensors(graph).items())}

    def filled(tensor: Tensor) -> Tensor:
        value = weights[names[id(tensor)]]
        return value.requires_grad_(tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value

    return cast(fx.GraphModule, twin(graph, filled))


def twin_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of a graph module, of a class and with lists of hooks of its own, that shares its tensors."""
    graph = fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copied[node] = graph.node_copy(node, copied.__getitem__)
    root = twin(module, lambda tensor: tensor)
    for part in root.modules():
        without(part, lambda hook: False)
    return adopt(root, graph, type(module).__name__)
