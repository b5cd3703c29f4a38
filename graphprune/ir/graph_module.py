"""The GraphModule that graphprune makes: its code is generated when first needed, its copies keep modes and persistence."""

from __future__ import annotations

import copy
import importlib
import sys
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, cast

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch.fx.graph import CodeGen
from torch.fx.node import map_aggregate

from graphprune.ir.twins import restore_modes

_ADOPTED = ("training", "_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
_COMPILED = ("forward", "_code", "_lineno_map", "_prologue_start")  # what recompile() makes

_SET_ARGS: Final = vars(fx.Node)["args"].fset
_SET_KWARGS: Final = vars(fx.Node)["kwargs"].fset


class _OnDemand:
    """An attribute of one graph module that compiling makes: reading it compiles, which puts the real one in its place.

    The forward is also read from the class, of which each graph module has its own: so symbolic tracing does.
    """

    def __init__(self, name: str, module: fx.GraphModule) -> None:
        self.name = name
        self.module = module

    def __get__(self, instance: fx.GraphModule | None, owner: type) -> Any:
        if instance is None and self.name != "forward":
            return self
        (self.module if instance is None else instance).recompile()
        return getattr(owner if instance is None else instance, self.name)


class _Nothing(fx.Graph):
    """The graph of a module that is given its own in a moment: no code is generated for it."""


class GraphModule(fx.GraphModule):
    """As ``fx.GraphModule``, whose deep copies lack what was set besides (and up to torch 2.11 have every buffer persistent)."""

    def recompile(self) -> Any:
        """Generate the Python code of the graph."""
        return None if isinstance(self._graph, _Nothing) else super().recompile()

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphModule:
        """A deep copy, with the mode of every module, the persistence of every buffer, and plain attributes such as a scope's."""
        result = cast(GraphModule, super().__deepcopy__(memo))
        restore_modes(result, self)
        for name in self.__dict__.keys() - result.__dict__.keys() - set(_COMPILED):
            result.__dict__[name] = copy.deepcopy(self.__dict__[name], memo)
        return result

    def __reduce__(self) -> Any:
        """Pickled as the list of its nodes. (fx pickles code and traces that, which bakes the train or eval mode in.)"""
        if type(self.graph._codegen) is not CodeGen:
            self.recompile()
            return super().__reduce__()
        state = {name: value for name, value in self.__dict__.items() if name not in (*_COMPILED, "_graph")}
        return _unpickled, (state, _records(self.graph), type(self).__name__)

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """``torch.compile`` the module in place; Dynamo does not trace fx's own code generation."""
        self.recompile()
        super().compile(*args, **kwargs)


def adopt(root: nn.Module, graph: fx.Graph, class_name: str) -> GraphModule:
    """A GraphModule that takes over a module tree as it is; fx's constructor would build the hierarchy anew.

    Its Python code is generated when it is first called, read or pickled: a graph that is only analysed never needs any.
    """
    result = GraphModule(nn.Module(), _Nothing(), class_name)
    for store in _ADOPTED:
        result.__dict__[store] = root.__dict__[store]
    result.__dict__["_graph"] = graph
    graph.owning_module = result
    for name in _COMPILED:
        result.__dict__.pop(name, None)
        setattr(type(result), name, _OnDemand(name, result))
    return result


def add_node(
    graph: fx.Graph, op: str, target: Any, args: Any = (), kwargs: Any = None, name: str | None = None, type_expr: Any = None
) -> fx.Node:
    """A new node at the end of a graph, as ``create_node`` makes it; in half of the time.

    That one searches the arguments for symbols; an assignment to a node looks up what nodes the graph has of its target.
    """
    node = graph.create_node(op, target, name=name, type_expr=type_expr)
    if args:
        _SET_ARGS(node, args)
    if kwargs:
        _SET_KWARGS(node, kwargs)
    return node


@dataclass(frozen=True)
class _Link:
    """A node as an argument, by its name."""

    name: str


@dataclass(frozen=True)
class _Operator:
    """An operator, which does not pickle, by its namespace, name and overload."""

    path: tuple[str, str, str]


@dataclass(frozen=True)
class _Function:
    """A function that was made within another (``F.max_pool2d``), which does not pickle, by its module and name there."""

    module: str
    name: str


@dataclass(frozen=True)
class _Format:
    """A memory format, which does not pickle as ``torch.save`` does it, by its name in torch."""

    name: str


_Record = tuple[str, str, Any, Any, Any, bool]
_WHOLE: Final = "is_wrapped"  # fx's mark on calls that another trace keeps whole


def _records(graph: fx.Graph) -> list[_Record]:
    """Operation, name, target, arguments, keywords and fx's mark of every node."""
    return [
        (node.op, node.name, _portable(node.target), *_linked(node), bool(node.meta.get(_WHOLE, False))) for node in graph.nodes
    ]


def _linked(node: fx.Node) -> tuple[Any, Any]:
    return cast(tuple[Any, Any], map_aggregate((node.args, node.kwargs), _as_stored))


def _as_stored(item: Any) -> Any:
    if isinstance(item, torch.memory_format):
        return _Format(str(item).removeprefix("torch."))
    return _Link(item.name) if isinstance(item, fx.Node) else item


def _portable(target: Any) -> Any:
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", "")
    if "<locals>" in getattr(target, "__qualname__", "") and getattr(sys.modules.get(module), name, None) is target:
        return _Function(module, name)
    if not isinstance(target, OpOverload):
        return target
    return _Operator((target.namespace, target._schema.name.partition("::")[2], target._schema.overload_name or "default"))


def _found(target: Any) -> Any:
    if isinstance(target, _Function):
        return getattr(importlib.import_module(target.module), target.name)
    return attrgetter(".".join(target.path))(torch.ops) if isinstance(target, _Operator) else target


def _as_given(item: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(item, _Format):
        return getattr(torch, item.name)
    return nodes[item.name] if isinstance(item, _Link) else item


def _unpickled(state: dict[str, Any], records: list[_Record], class_name: str) -> GraphModule:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for op, name, target, args, kwargs, whole in records:
        target = _found(target)
        given: Any = map_aggregate((args, kwargs), lambda item: _as_given(item, nodes))
        nodes[name] = graph.create_node(op, target, given[0], given[1], name)
        if whole:
            nodes[name].meta[_WHOLE] = True
    root = nn.Module()
    root.__dict__.update(state)
    result = adopt(root, graph, class_name)
    result.__dict__.update({name: state[name] for name in state.keys() - set(_ADOPTED)})
    return result
