"""What each layer of a model is, apart from its lengths, and which lengths its time depends on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Groups
from graphprune.channels.labels import Field, Value
from graphprune.ir.twins import modules_by_path
from graphprune.latency.table import Length, NodeInfo

_CALLS: Final = ("call_module", "call_function", "call_method")
_MOST_LENGTHS: Final = 2  # a layer's time is fitted to its output's and its input's length


class _Shapes(fx.Interpreter):
    """Runs a graph once and keeps the shape of every tensor in its values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, list[str]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, whose shapes are noted."""
        result = super().run_node(n)
        self.found[n.name] = [word for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor) for word in _tensor(leaf)]
        return result


def _tensor(tensor: torch.Tensor) -> list[str]:
    return [str(tensor.dtype).removeprefix("torch."), "[", *map(str, tensor.shape), "]"]


def node_infos(whole: fx.GraphModule, least: fx.GraphModule, arguments: Sequence[Any], groups: Groups) -> dict[str, NodeInfo]:
    """The layers of a model by node name.

    whole, least: slim models at full and at the least widths, on one device with the arguments. What differs between the
    two is a size that shrinks.
    """
    wide, narrow = _words(whole, arguments), _words(least, arguments)
    tree = modules_by_path(whole)
    nodes = [node for node in whole.graph.nodes if node.name in wide and node.name in groups.trace.values]
    return {
        node.name: NodeInfo(family=_family(wide[node.name], narrow.get(node.name)), lengths=_lengths(node, groups, tree))
        for node in nodes
    }


def _family(wide: Sequence[str], narrow: Sequence[str] | None) -> str:
    pairs = zip_longest(wide, wide if narrow is None else narrow, fillvalue="")
    return " ".join(one if one == other else "*" for one, other in pairs)


def _words(module: fx.GraphModule, arguments: Sequence[Any]) -> dict[str, list[str]]:
    """A description of every call, as words that can be compared one by one."""
    shapes = _Shapes(module)
    with torch.no_grad():
        shapes.run(*arguments)
    tree = modules_by_path(module)
    return {node.name: [*_kind(node, tree), *_arguments(node, shapes.found)] for node in module.graph.nodes if node.op in _CALLS}


def _kind(node: fx.Node, tree: Mapping[str, nn.Module]) -> Iterator[str]:
    if node.op != "call_module":
        yield str(node.target) if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return
    layer = tree[str(node.target)]
    yield type(layer).__name__
    for name, value in sorted(vars(layer).items()):
        if not name.startswith("_") and name != "training" and isinstance(value, (bool, int, float, str, tuple)):
            yield f"{name}="
            yield from map(str, value if isinstance(value, tuple) else (value,))
    for name, tensor in layer.state_dict().items():
        yield f"{name}:"
        yield from _tensor(tensor)


def _arguments(node: fx.Node, shapes: Mapping[str, list[str]]) -> Iterator[str]:
    yield "("
    for leaf in tree_leaves((node.args, node.kwargs)):
        yield from shapes[leaf.name] if isinstance(leaf, fx.Node) else (str(leaf),)
    yield ")->"
    yield from shapes[node.name]


def _lengths(node: fx.Node, groups: Groups, tree: Mapping[str, nn.Module]) -> tuple[Length, ...]:
    """The lengths that shrink of what the node makes, reads and owns, each once; the first two."""
    found: list[Length] = []
    for field in _fields(node, groups, tree):
        constant, by_group = groups.linear(field)
        length = Length(constant=constant, by_group=dict(by_group))
        if by_group and length not in found:
            found.append(length)
    return tuple(found[:_MOST_LENGTHS])


def _fields(node: fx.Node, groups: Groups, tree: Mapping[str, nn.Module]) -> Iterator[Field]:
    trace = groups.trace
    inside = {name for shuffle in trace.shuffles for name in shuffle.interior}
    for one in (node, *node.all_input_nodes):
        for value in tree_leaves(trace.values[one.name] if one.name not in inside and one.name in trace.values else None):
            if isinstance(value, Value):
                yield from value.fields
    if node.op == "call_module":
        for name, _ in tree[str(node.target)].named_parameters():
            path = f"{node.target}.{name}"
            yield from trace.parameters.get(trace.aliases.get(path, path), Value(())).fields
