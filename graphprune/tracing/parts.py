"""The joint graph of scopes, and each of its parts in the place of the module that it is of."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx, nn
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from graphprune.errors import RewriteError
from graphprune.ir.graph_module import adopt
from graphprune.ir.handed import Keys, handed_over, is_handed_over, part_of
from graphprune.ir.program import Scope


def outside(graph: fx.Graph, paths: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Layers and tensors that a scope uses and that do not lie in it, with the scope's path."""
    for path, result in zip(paths, graph.output_node().args[0], strict=True):  # type: ignore[arg-type]
        for node in _ancestors(result):
            target = str(node.target)
            if node.op in ("call_module", "get_attr") and "." in target and not target.startswith(f"{path}."):
                yield path, target


def put_back(model: nn.Module, slim: fx.GraphModule, scopes: Sequence[Scope]) -> nn.Module:
    """A deep copy of the model with its scopes replaced by the slim ones. Raises RewriteError unless each has a result."""
    results: Any = slim.graph.output_node().args[0]
    if not isinstance(results, (tuple, list)) or len(results) != len(scopes):
        raise RewriteError(f"The graph does not make a result for each of {', '.join(scope.path for scope in scopes)}.")
    memo: dict[int, Any] = {}
    for scope, result in zip(scopes, results, strict=True):
        original = model.get_submodule(scope.path)
        memo[id(original)] = _part(slim, scope, result, original)
    return copy.deepcopy(model, memo)


def joined(model: nn.Module, scopes: Sequence[Scope]) -> fx.GraphModule | None:
    """The graph of a model whose scopes are graph modules: what :func:`put_back` took apart, with the names that nodes have there.

    None where a scope is no graph module.
    """
    parts = [model.get_submodule(scope.path) for scope in scopes]
    graph = fx.Graph()
    given = {name: graph.placeholder(name) for scope in scopes for _, name in scope.arguments if name}
    results: dict[str, Any] = {}
    for scope, part in zip(scopes, parts, strict=True):
        if not isinstance(part, fx.GraphModule):
            return None
        names, copied = dict(scope.arguments), dict[fx.Node, fx.Node]()
        taken, ways = _entrances(graph, scope, results), dict[fx.Node, tuple[str, Keys]]()
        arguments = {argument for argument, _ in taken}
        for node in part.graph.nodes:
            way = _way(node, ways, arguments)
            if way is not None and way in taken:
                copied[node] = taken[way]
            elif way is not None:
                ways[node] = way
            elif node.op == "placeholder":
                if name := names.get(str(node.target)):
                    copied[node] = given[name]
            elif node.op == "output":
                results[scope.path] = map_arg(node.args[0], copied.__getitem__)
            else:
                new = copied[node] = graph.node_copy(node, copied.__getitem__)
                if node.op in ("call_module", "get_attr"):
                    new.target = f"{scope.path}.{node.target}"
    graph.output(tuple(results.values()))
    return fx.GraphModule(model, graph)


def _entrances(graph: fx.Graph, scope: Scope, results: Mapping[str, Any]) -> dict[tuple[str, Keys], fx.Node]:
    """Where a joint graph enters a scope from others, by argument and place in it. results: of the others, by path."""
    return {
        (one.argument, one.at): graph.call_function(
            handed_over, (part_of(results[one.source], one.part), scope.path, one.argument, one.at, one.read)
        )
        for one in scope.taken
    }


def _way(node: fx.Node, ways: Mapping[fx.Node, tuple[str, Keys]], arguments: Collection[str]) -> tuple[str, Keys] | None:
    """Which of these arguments a node of a scope is, or which part of one; None for any other node. ways: of nodes before it."""
    if node.op == "placeholder":
        return (str(node.target), ()) if node.target in arguments else None
    if node.target is not operator.getitem or node.args[0] not in ways:
        return None
    argument, keys = ways[cast(fx.Node, node.args[0])]
    return argument, (*keys, cast(int | str, node.args[1]))


def _part(slim: fx.GraphModule, scope: Scope, result: Any, original: nn.Module) -> fx.GraphModule:
    """One scope's graph and modules as a graph module of its own."""
    graph, prefix = fx.Graph(), f"{scope.path}."
    copied = _arguments(slim.graph, scope, graph)
    needed = _needed(slim.graph, prefix, set(copied), result)
    for node in slim.graph.nodes:
        if node in needed and node not in copied:
            copied[node] = graph.node_copy(node, copied.__getitem__)
            if node.op in ("call_module", "get_attr") and node.target.startswith(prefix):
                copied[node].target = node.target.removeprefix(prefix)
    graph.output(map_arg(result, copied.__getitem__))
    module = adopt(slim.get_submodule(scope.path), graph, type(original).__name__)
    for name, tensor in slim.named_buffers(recurse=False):
        if any(node.op == "get_attr" and node.target == name for node in graph.nodes):
            module.register_buffer(name, tensor, persistent=False)
    for name, value in original.__dict__.items():
        if name not in module.__dict__ and not isinstance(value, torch.Tensor):
            module.__dict__[name] = value  # what the code around it may read, such as out_channels
    return module


def _arguments(joint: fx.Graph, scope: Scope, graph: fx.Graph) -> dict[fx.Node, fx.Node]:
    """The placeholders of a scope's own graph, and what is taken from them, by the nodes of the joint graph that stand for it."""
    entrances = [node for node in joint.nodes if is_handed_over(node) and node.args[1] == scope.path]
    given = {name for name, placeholder in scope.arguments if placeholder} | {node.args[2] for node in entrances}
    own = {
        name: graph.placeholder(name) if name in given else graph.placeholder(name, default_value=None)
        for name, _ in scope.arguments
    }
    names = {placeholder: name for name, placeholder in scope.arguments if placeholder}
    found = {node: own[names[node.target]] for node in joint.nodes if node.op == "placeholder" and node.target in names}
    others = {node.name for node in joint.nodes}
    return found | {node: _item(own[str(node.args[2])], cast(Keys, node.args[3]), others) for node in entrances}


def _item(node: fx.Node, keys: Keys, others: Collection[str]) -> fx.Node:
    """A part of what a node holds. others: names that are kept for other nodes."""
    for key in keys:
        name = f"{node.name}_{key}"
        while name in others:
            name += "_"
        node = node.graph.create_node("call_function", operator.getitem, (node, key), name=name)
    return node


def _needed(graph: fx.Graph, prefix: str, arguments: set[fx.Node], result: Any) -> set[fx.Node]:
    """Nodes of a joint graph that are one scope's: all that its result takes, and all that is done to what is its own.

    Its own are its arguments, its layers and its tensors; what the result does not take writes into them, as counts of batches do.
    """
    needed, own = _ancestors(result), set(arguments)
    for node in graph.nodes:
        inside = node.op in ("call_module", "get_attr") and node.target.startswith(prefix)
        if node.op != "output" and not is_handed_over(node) and (inside or not own.isdisjoint(node.all_input_nodes)):
            own.add(node)
            if node not in needed:
                needed |= _ancestors(node)
    return needed


def _ancestors(result: Any) -> set[fx.Node]:
    """All that a scope's result takes, back to where the scope begins."""
    found: set[fx.Node] = set()
    pending = [leaf for leaf in tree_leaves(result) if isinstance(leaf, fx.Node)]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += () if is_handed_over(node) else node.all_input_nodes
    return found
