"""Writes into memory that nothing reads: weights of a layer that a forward makes and does not use, or overwrites."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import fx

from graphprune.channels.tape import Operation, Step, Tape
from graphprune.rules import tensors_in


def leave_out_dead_writes(graph: fx.Graph, tape: Tape) -> None:
    """Take calls out whose only effect is on memory that the graph makes and does not read, and what they alone read."""
    steps = {step.node: step for step in tape.steps}
    writes = {step.node: written for step in tape.steps if (written := _written(step))}
    if not writes:
        return
    results = {node: _memory([steps[node.name].result]) for node in graph.nodes}
    made = {memory for node in graph.nodes if _makes(node) for memory in results[node]}
    made -= {memory for node in graph.nodes if not _makes(node) for memory in results[node]}
    if made.isdisjoint(chain.from_iterable(writes.values())):
        return
    needed: set[fx.Node] = set()
    read: set[int] = set()
    dead: dict[fx.Node, None] = {}
    for node in reversed(graph.nodes):
        step = steps[node.name]
        written = writes.get(node.name, set())
        has_effects = not written <= made - read if written else not (_makes(node) or node.op == "get_attr")
        is_of_dead = bool(node.users) and node.users.keys() <= dead.keys()
        if has_effects or not needed.isdisjoint(node.users) or not (written or is_of_dead):
            needed.add(node)
            read |= _memory([(run.args, run.kwargs) for run in step.operations]) | results[node]
        else:
            dead[node] = None
    for node in dead:
        graph.erase_node(node)
        del steps[node.name]
    tape.steps[:] = steps.values()


def _makes(node: fx.Node) -> bool:
    """Whether a node is a call that does no more than make what it returns."""
    return node.op in ("call_function", "call_method") and node.target not in (torch._assert, torch._assert_async)


def _written(step: Step) -> set[int]:
    """The memory that a node writes into."""
    return {memory for run in step.operations if run.operator._schema.is_mutable for memory in _memory(_targets(run))}


def _targets(run: Operation) -> list[Any]:
    arguments = enumerate(run.operator._schema.arguments)
    written = [(place, one.name) for place, one in arguments if one.alias_info is not None and one.alias_info.is_write]
    return [run.args[place] if place < len(run.args) else run.kwargs.get(name) for place, name in written]


def _memory(trees: Iterable[Any]) -> set[int]:
    return {int(tensor.untyped_storage()._cdata) for tensor in tensors_in(trees)}
