"""The module of a captured graph: the model's own layers and tensors, in a tree of the same names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx, nn

from graphprune.ir.graph_module import adopt
from graphprune.ir.twins import set_mode


def module_over(root: nn.Module, graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> fx.GraphModule:
    """The graph over a tree of what it uses: the model's own layers and tensors, in modules of the same names, or lists of them."""
    layers = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    tensors = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    needed = {path[:end] for path in layers | tensors for end, letter in enumerate(path) if letter == "."}
    tree = _part(root, "", layers, tensors, needed | layers)
    for name, tensor in constants.items():
        tree.register_buffer(name, tensor, persistent=False)
    return adopt(tree, graph, type(root).__name__)


def _part(source: nn.Module, path: str, layers: set[str], tensors: set[str], needed: set[str]) -> nn.Module:
    """A layer as it is; of a container what the graph needs of it."""
    if path in layers:
        return source
    prefix = f"{path}." if path else ""
    kept = {name: child for name, child in source._modules.items() if child is not None and prefix + name in needed}
    # Where numbers name all that is left, it is found by number, as in the model's own lists and sequences.
    result = nn.ModuleList() if [*kept] == [str(index) for index in range(len(kept))] != [] else nn.Module()
    set_mode(result, source.training)
    result._parameters.update({name: value for name, value in source._parameters.items() if prefix + name in tensors})
    result._buffers.update({name: value for name, value in source._buffers.items() if prefix + name in tensors})
    result._non_persistent_buffers_set.update(source._non_persistent_buffers_set & result._buffers.keys())
    for name, child in kept.items():
        result._modules[name] = _part(child, prefix + name, layers, tensors, needed)
    return result
