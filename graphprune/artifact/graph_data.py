"""An fx graph as plain data: a list of nodes, each with its operation, name, target and arguments.

fx turns a graph into Python source and compiles it, so every text that could end up in that source (node names,
arguments' names, keywords, dotted paths, methods, constants) is checked here before a node is made. Functions come from
the allow-list of :mod:`graphprune.artifact.targets`. A node can only refer to nodes before it.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.graph import CodeGen

from graphprune.artifact import targets
from graphprune.artifact.values import CONSTANTS, Codec, check_name, field, of_type, shorten
from graphprune.errors import ArtifactError

MAX_NODES = 1_000_000

_WHOLE = "is_wrapped"
"""fx's mark on calls that a second trace must keep whole (``torch.fx.wrap``)."""

_WRITING = CONSTANTS.extended({fx.Node: ("node", lambda value, _: value.name)}, {})


def encode_graph(graph: fx.Graph) -> list[dict[str, Any]]:
    """The graph as node records. Raises ArtifactError naming the node that has no such form."""
    if type(graph._codegen) is not CodeGen:
        raise ArtifactError(f"the graph has a calling convention of its own ({type(graph._codegen).__name__})")
    return [_encode(node) for node in graph.nodes]


def _encode(node: fx.Node) -> dict[str, Any]:
    try:
        return {
            "op": node.op,
            "name": node.name,
            "target": targets.function_name(node.target) if node.op == "call_function" else node.target,
            "args": [_WRITING.write(item) for item in node.args],
            "kwargs": {key: _WRITING.write(item) for key, item in node.kwargs.items()},
            "whole": bool(node.meta.get(_WHOLE, False)),
        }
    except ArtifactError as error:
        raise ArtifactError(f"the node {node.name} cannot be stored: {error}") from error


def decode_graph(records: Any, root: nn.Module) -> fx.Graph:
    """The graph of these records over the modules and tensors of root. Raises ArtifactError for anything that is not allowed."""
    records = of_type(records, list, "the list of nodes")
    if len(records) > MAX_NODES:
        raise ArtifactError(f"the graph has more than {MAX_NODES} nodes")
    if [field(record, "op", str) for record in records].count("output") != 1 or records[-1]["op"] != "output":
        raise ArtifactError("the graph does not have one output at its end")
    builder = _Builder(root)
    for record in records:
        builder.add(record)
    return builder.graph


class _Builder:
    """Checks one record after another and adds it to a graph."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.graph = fx.Graph()
        self.nodes: dict[str, fx.Node] = {}
        self.arguments: set[str] = set()
        self.codec: Codec = CONSTANTS.extended({}, {"node": lambda data, _: self._node(data)})

    def add(self, record: Any) -> None:
        name = check_name(field(record, "name", str), "the node name")
        if name in self.nodes:
            raise ArtifactError(f"the node name {shorten(name)} appears twice")
        op, target = record["op"], field(record, "target", str)
        args = tuple(self.codec.read(item) for item in field(record, "args", list))
        given = field(record, "kwargs", dict)
        kwargs = {check_name(key, "the keyword"): self.codec.read(value) for key, value in given.items()}
        if op not in _CHECKS:
            raise ArtifactError(f"the node {name} has the unknown operation {shorten(op)}")
        checked = _CHECKS[op](self, target, args, kwargs)
        node = self.graph.create_node(op, checked, args, kwargs, name=name)
        if field(record, "whole", bool) and op == "call_function":
            node.meta[_WHOLE] = True
        self.nodes[name] = node

    def _node(self, name: Any) -> fx.Node:
        if type(name) is not str or name not in self.nodes:
            raise ArtifactError(f"a node refers to {shorten(name)}, which does not come before it")
        return self.nodes[name]

    def _module(self, path: str) -> nn.Module | None:
        module: nn.Module | None = self.root
        for name in path.split(".") if path else ():
            module = None if module is None else module._modules.get(name)
        return module

    def placeholder(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """An argument of the model, with an optional constant default."""
        bare = target.removeprefix("*").removeprefix("*")
        if check_name(bare, "the argument name") in self.arguments | {"self"} or len(args) > 1 or kwargs or _holds_node(args):
            raise ArtifactError(f"the argument {shorten(target)} appears twice or is malformed")
        self.arguments.add(bare)
        return target

    def get_attr(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """A parameter or buffer, or the train/eval mode, of a module of the tree."""
        path, _, name = target.rpartition(".")
        owner = self._module(path)
        found = owner is not None and (name == "training" or owner._parameters.get(name, owner._buffers.get(name)) is not None)
        if args or kwargs or not found:
            raise ArtifactError(f"the attribute {shorten(target)} is no parameter, buffer or training mode of the model")
        return target

    def call_module(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """A module of the tree that computes something."""
        if not target or type(self._module(target)) in (nn.Module, type(None)):
            raise ArtifactError(f"the module {shorten(target)} does not exist or cannot be called")
        return target

    def call_method(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """A method of a tensor, which is the first argument."""
        if target not in targets.methods() or not args or type(args[0]) is not fx.Node:
            raise ArtifactError(f"the method {shorten(target)} is not among those that an artifact may call on a tensor")
        return target

    def call_function(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """A function of the allow-list; ``getattr`` only for the attributes of a list."""
        function = targets.find_function(target)
        if function is builtins.getattr:
            plain = len(args) == 2 and not kwargs and type(args[0]) is fx.Node and type(args[1]) is str
            if not plain or args[1] not in targets.ATTRIBUTES:
                raise ArtifactError(f"reading the attribute {shorten(args[1:])} is not allowed")
        return function

    def output(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """What the model returns."""
        if len(args) != 1 or kwargs or target != "output":
            raise ArtifactError("the output is malformed")
        return target


def _holds_node(value: Any) -> bool:
    found: list[fx.Node] = []
    torch.fx.node.map_arg(value, found.append)
    return bool(found)


_CHECKS: dict[str, Callable[[_Builder, str, tuple[Any, ...], dict[str, Any]], Any]] = {
    "placeholder": _Builder.placeholder,
    "get_attr": _Builder.get_attr,
    "call_module": _Builder.call_module,
    "call_method": _Builder.call_method,
    "call_function": _Builder.call_function,
    "output": _Builder.output,
}
