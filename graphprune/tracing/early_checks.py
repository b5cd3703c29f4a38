"""Checks of sizes come as early as they can: other sizes than the graph is for are refused before a call fails for them."""

from __future__ import annotations

import builtins
import math
import operator
from collections import defaultdict
from typing import Final

import torch
from torch import fx

from graphprune.channels.tape import Tape

_OF_NUMBERS: Final = (operator.add.__module__, builtins.__name__, math.__name__)
_READING: Final = (operator.getitem, getattr)


def bring_checks_forward(graph: fx.Graph, tape: Tape) -> None:
    """Put each check of sizes, and what it computes of them, right after the tensors whose sizes they are."""
    moving = _moving(graph)
    if not moving:
        return
    places = {node: place for place, node in enumerate(graph.nodes)}
    anchors: dict[fx.Node, fx.Node] = {}
    behind: dict[fx.Node, list[fx.Node]] = defaultdict(list)
    for node in [node for node in graph.nodes if node in moving]:
        after = [anchors.get(read, read) for read in node.all_input_nodes]
        anchor = max(after, key=places.__getitem__)
        while anchor.op == anchor.next.op == "placeholder":
            anchor = anchor.next
        anchors[node] = anchor
        behind[anchor].append(node)
    for anchor, nodes in behind.items():
        last = anchor
        for node in nodes:
            last.append(node)
            last = node
    steps = {step.node: step for step in tape.steps}
    tape.steps[:] = [steps[node.name] for node in graph.nodes]


def _moving(graph: fx.Graph) -> set[fx.Node]:
    """The checks, and the sizes and numbers that they read."""
    found: set[fx.Node] = set()
    pending = [node for node in graph.nodes if node.target is torch._assert]
    while pending:
        node = pending.pop()
        if node not in found and node.all_input_nodes:
            found.add(node)
            pending += [read for read in node.all_input_nodes if _computes_sizes(read)]
    return found


def _computes_sizes(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "size"
    target = node.target
    return node.op == "call_function" and getattr(target, "__module__", "") in _OF_NUMBERS and target not in _READING
