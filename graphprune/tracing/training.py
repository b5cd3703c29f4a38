"""Train and eval mode in a trace: the graph of eval mode, whose calls follow the mode where the original's do."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch import fx


class Mode(int):
    """What ``self.training`` is while a model is traced: as an argument it is recorded, as a condition it is 0 or 1.

    consulted: whether Python code asked for its truth, so that the trace depends on it.
    """

    consulted: bool = False

    def __bool__(self) -> bool:
        self.consulted = True
        return int(self) != 0


def follow_mode(graph: fx.Graph, other: fx.Graph) -> Iterator[tuple[fx.Node, Any]]:
    """Make the constants that differ between the graphs of eval mode and of train mode follow the graph module's mode.

    ``False`` and ``True`` become the mode; 0 and a rate become the mode times the rate. Graphs that differ otherwise stay
    as they are, in eval mode. Yields the nodes that it makes, with their values in eval mode.
    """
    nodes, others = list(graph.nodes), list(other.nodes)
    if [(n.op, str(n.target)) for n in nodes] != [(n.op, str(n.target)) for n in others]:
        return
    for node, twin in zip(nodes, others, strict=True):
        for index, (now, then) in enumerate(zip(node.args, twin.args, strict=False)):
            if _differ(now, then):
                made = _followed(node, now, then)
                node.update_arg(index, made[-1])
                yield from ((new, now) for new in made)
        for key, now in list(node.kwargs.items()):
            if _differ(now, twin.kwargs.get(key)):
                made = _followed(node, now, twin.kwargs[key])
                node.update_kwarg(key, made[-1])
                yield from ((new, now) for new in made)


def _differ(now: Any, then: Any) -> bool:
    return (now is False and then is True) or (isinstance(now, (int, float)) and now == 0 and isinstance(then, float) and then > 0)


def _followed(node: fx.Node, now: Any, then: Any) -> list[fx.Node]:
    """Nodes that compute the constant, the last one its value."""
    with node.graph.inserting_before(node):
        mode = node.graph.get_attr("training")
        return [mode] if now is False else [mode, node.graph.call_function(operator.mul, (mode, then))]
