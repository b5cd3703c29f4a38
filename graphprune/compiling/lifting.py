"""Dynamo's graph as a module: the tensors that Dynamo passes in as arguments become parameters and buffers again.

Dynamo names each argument by the Python expression that reads it, such as ``L['self']._modules['conv']._parameters['weight']``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import fx, nn

from graphprune.errors import CaptureError
from graphprune.ir.program import Inputs

_STORE: Final = re.compile(r"\._(?:modules|parameters|buffers)\['([^']+)'\]")
_SIZE: Final = re.compile(r"(.*)\.size\(\)\[(\d+)\]")
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True)
class Lifted:
    """A graph of Dynamo with the tensors of modules as attributes.

    module: the graph. inputs: examples of the arguments that are left. tensors: for each attribute by its dotted name, which of
    Dynamo's arguments it is. given: which of them the arguments are that are left, in order.
    """

    module: fx.GraphModule
    inputs: Inputs
    tensors: dict[str, int]
    given: tuple[int, ...]


def lift(module: fx.GraphModule, arguments: Sequence[Any]) -> Lifted:
    """Make the tensors of modules attributes of the graph, under their names in these modules.

    module, arguments: what Dynamo hands a backend. Sizes that Dynamo passes are read off the tensors that have them. The tensors
    are shared, ``module`` is not changed. Raises CaptureError for an argument that is neither a tensor nor such a size.
    """
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    sources = [_source(node) for node in placeholders]
    names = _names(sources, arguments)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    inputs, given = [], []
    for place, node in enumerate(placeholders):
        if place in names:
            copies[node] = graph.get_attr(names[place])
        elif isinstance(arguments[place], torch.Tensor):
            copies[node] = graph.placeholder(node.name)
            inputs.append(arguments[place].detach())
            given.append(place)
    by_source = {source: node for source, node in zip(sources, placeholders, strict=True) if node in copies}
    for source, node in zip(sources, placeholders, strict=True):
        if node not in copies:
            found = _SIZE.fullmatch(source)
            if found is None or found[1] not in by_source:
                raise CaptureError(f"The argument {source} of Dynamo's graph is neither a tensor nor the size of one.")
            copies[node] = graph.call_method("size", (copies[by_source[found[1]]], int(found[2])))
    result = graph.graph_copy(module.graph, copies)
    graph.output(result)
    root = _tree({name: arguments[place] for place, name in names.items()})
    for node in graph.nodes:
        if node.op in ("get_attr", "call_module") and node.target not in names.values():
            setattr(root, node.target, getattr(module, node.target))
    lifted = fx.GraphModule(root, graph, "DynamoGraph").eval()
    return Lifted(lifted, Inputs(tuple(inputs)), {name: place for place, name in names.items()}, tuple(given))


def _source(node: fx.Node) -> str:
    argument = node.meta.get("grapharg")
    source = getattr(argument, "source", None)
    name = getattr(source, "name", node.name)
    return str(name() if callable(name) else name)


def _names(sources: Sequence[str], arguments: Sequence[Any]) -> dict[int, str]:
    """For each argument that is a tensor of a module, its name there; with the module's own in front where two would be equal."""
    roots = {source[: found.start()] for source in sources if (found := _STORE.search(source))}
    names: dict[int, str] = {}
    for place, source in enumerate(sources):
        root = next((root for root in roots if source.startswith((f"{root}.", f"{root}["))), None)
        if root is not None and isinstance(arguments[place], torch.Tensor):
            rest = source[len(root) :]
            inside = _STORE.findall(rest)
            left = _WORD.findall(_STORE.sub("", rest))  # tensors that are plain attributes
            names[place] = ".".join([*inside, *left])
    double = {name for name in names.values() if list(names.values()).count(name) > 1}
    for place, name in names.items():
        if name in double:
            names[place] = f"{'_'.join(_WORD.findall(sources[place].partition('._')[0]))}.{name}"
    return names


def _tree(tensors: dict[str, torch.Tensor]) -> nn.Module:
    root = nn.Module()
    for name, tensor in tensors.items():
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            module.register_parameter(leaf, tensor)
        else:
            module.register_buffer(leaf, tensor)
    return root
