"""The graph of a model's layers: what is left of its fx graph when calls without parameters are taken out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Groups
from graphprune.channels.labels import Value
from graphprune.ir.program import Program


@dataclass
class Layer:
    """One node of the drawing.

    kind: ``layer`` for what has parameters, ``join`` for a call that brings several layers together (an addition, a concat),
    ``input`` or ``output``. sources: keys of the nodes before it. folded: layers of vectors alone, such as a batch norm, that
    follow it and nothing else.
    """

    key: str
    kind: str
    label: str
    sources: list[str] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """All layers that it stands for."""
        return [self.key, *self.folded] if self.kind == "layer" else []


def layer_graph(program: Program, groups: Groups) -> dict[str, Layer]:
    """The layers of a program by key, in the order of their first call."""
    found = _Contracted(program, groups).layers
    return _folded(found, {name: len(value.shape) for name, value in groups.trace.parameters.items()}, program)


def layer_of(tensor: str, program: Program) -> str:
    """The layer that a parameter or buffer belongs to: its module, or itself where that module has modules in it."""
    path = tensor.rpartition(".")[0]
    if not path:
        return tensor
    return tensor if any(True for _ in program.module.get_submodule(path).children()) else path


class _Contracted:
    """One walk over the graph; for each value it is known which drawn nodes it comes from, and which parameters alone."""

    def __init__(self, program: Program, groups: Groups) -> None:
        self._program, self._values = program, groups.trace.values
        self._owners: dict[fx.Node, str] = {}  # of values that depend on parameters alone
        self._from: dict[fx.Node, tuple[str, ...]] = {}
        self.layers: dict[str, Layer] = {}
        with_tensors = {layer_of(name, program) for name in program.tensors}
        for node in program.module.graph.nodes:
            self._visit(node, with_tensors)

    def _visit(self, node: fx.Node, with_tensors: set[str]) -> None:
        if node.op == "get_attr":
            self._owners[node] = layer_of(str(node.target), self._program)
            return
        given = node.all_input_nodes
        sources = _unique(source for one in given for source in self._from.get(one, ()))
        owners = _unique(self._owners[one] for one in given if one in self._owners)
        if node.op == "placeholder":
            self._add(node, node.name, "input", node.name, [])
        elif node.op == "output":
            self._add(node, "output", "output", "output", sources)
        elif node.op == "call_module" and str(node.target) in with_tensors:
            self._add(node, str(node.target), "layer", str(node.target), sources)
        elif owners and not sources:
            self._owners[node] = owners[0]
        elif owners:
            self._add(node, owners[0], "layer", owners[0], sources)
        elif len(sources) > 1 and self._is_tensor(node):
            self._add(node, node.name, "join", _operation(node), sources)
        elif self._is_tensor(node):
            self._from[node] = sources

    def _add(self, node: fx.Node, key: str, kind: str, label: str, sources: Iterable[str]) -> None:
        layer = self.layers.setdefault(key, Layer(key, kind, label))
        layer.sources += [source for source in sources if source not in layer.sources and source != key]
        self._from[node] = (key,)

    def _is_tensor(self, node: fx.Node) -> bool:
        """Whether a node makes tensors; sizes come from layers, too, and no edge is drawn for them."""
        return any(isinstance(leaf, Value) for leaf in tree_leaves(self._values.get(node.name)))


def _folded(layers: dict[str, Layer], ranks: Mapping[str, int], program: Program) -> dict[str, Layer]:
    """Layers that hold vectors alone join the layer before them, where each has only the other."""
    readers: dict[str, int] = {}
    deepest: dict[str, int] = {}
    for layer in layers.values():
        for source in layer.sources:
            readers[source] = readers.get(source, 0) + 1
    for name, rank in ranks.items():
        owner = layer_of(name, program)
        deepest[owner] = max(deepest.get(owner, 0), rank)
    into: dict[str, str] = {}
    for key, layer in layers.items():
        before = into.get(layer.sources[0], layer.sources[0]) if len(layer.sources) == 1 else ""
        alone = before and layers[before].kind == "layer" and readers[layer.sources[0]] == 1
        if alone and layer.kind == "layer" and deepest.get(key, 2) < 2:
            into[key] = before
            layers[before].folded.append(key)
    for layer in layers.values():
        layer.sources = list(_unique(into.get(source, source) for source in layer.sources))
    return {key: layer for key, layer in layers.items() if key not in into}


def _operation(node: fx.Node) -> str:
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return target.rpartition(".")[2]


def _unique(items: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(items))
