"""What a resizer sees of the node it resizes: shapes before and after, and sizes evaluated in both graphs."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx
from torch.fx.node import map_arg
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Ints, Kept
from graphprune.channels.labels import Shape, Value
from graphprune.channels.propagate import Trace
from graphprune.ir.reads import reads_numbers
from graphprune.ir.twins import named_tensors


@dataclass(frozen=True)
class Provenance:
    """In ``node.meta["graphprune"]`` of nodes that a pass changed: which pass, and which node of the original.

    before: positional and keyword arguments that the node had, where it is the same call with others.
    """

    made_by: str
    source: str
    before: tuple[Any, Any] | None = None


class Rewriting:
    """The new graph under construction, and what is known about its nodes.

    module: the original. origin: name of the old node of every new one. finished: nodes that no resizer needs to see. sizes: calls
    that result in numbers only, in graph order, with those of the original. follows: which of them are computed from sizes that are
    new. buffers: new constants, by name.
    """

    def __init__(self, module: fx.GraphModule, trace: Trace, kept: Kept, origin: dict[fx.Node, str]) -> None:
        self.module = module
        self.trace = trace
        self.kept = kept
        self.origin = origin
        self.finished: set[fx.Node] = set()
        calls = [node for node in origin if node.op in ("call_function", "call_method")]
        self.sizes = {node: value for node in calls if _only_numbers(value := trace.values[origin[node]])}
        self.follows: dict[fx.Node, bool] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        self._new: dict[fx.Node, Any] = {}

    def constant(self, node: fx.Node, data: Ints) -> fx.Node:
        """A constant of the new graph, for this node to read. Its name is one that no attribute of the original has: a second
        pruning must not take over the index of the first."""
        number, name = 1, f"{self.origin[node]}_index"
        free = name
        while hasattr(self.module, free):
            number += 1
            free = f"{name}_{number}"
        self.buffers[free] = torch.from_numpy(data).to(self._device)
        with node.graph.inserting_before(node):
            return node.graph.get_attr(free)

    @cached_property
    def _device(self) -> torch.device:
        return next((tensor.device for tensor in named_tensors(self.module).values()), torch.device("cpu"))

    def old_value(self, node: fx.Node) -> Any:
        """The abstract value, or plain number, of a node at full width; None for nodes that the rewriter inserted."""
        name = self.origin.get(node)
        return None if name is None else self.trace.values[name]

    def evaluate(self, arg: Any) -> Any:
        """An argument's value in the new graph at the example inputs; tensors are stand-ins of the new shape."""
        return map_arg(arg, self._evaluate_node)

    def _evaluate_node(self, node: fx.Node) -> Any:
        if node not in self._new:
            old = self.old_value(node)
            if isinstance(old, Value):
                self._new[node] = torch.empty(self.kept.shape(old), device="meta")
            elif reads_numbers(node) or node.target == "stride":  # of data, or of a layout, which stand-ins do not have
                self._new[node] = old
            elif node.op in ("call_function", "call_method"):
                args, kwargs = self.evaluate(node.args), self.evaluate(node.kwargs)
                call = node.target if callable(node.target) else getattr(args[0], str(node.target))
                self._new[node] = call(*(args if callable(node.target) else args[1:]), **kwargs)
            else:
                self._new[node] = old
        return self._new[node]

    def evaluate_old(self, arg: Any) -> Any:
        """An argument's value in the original graph at the example inputs."""
        return map_arg(arg, self.old_value)


def _only_numbers(value: Any) -> bool:
    return not isinstance(value, Value) and all(isinstance(leaf, (int, float)) for leaf in tree_leaves(value))


class NodeSite:
    """One node being resized (see :class:`graphprune.resizers.Site`)."""

    def __init__(self, rewriting: Rewriting, node: fx.Node) -> None:
        self.rewriting = rewriting
        self.node = node
        self.settled: set[fx.Node] = set()  # sizes that were looked at: not to be pinned to their old value

    def is_tensor(self, arg: fx.Node) -> bool:
        """Whether the node's result is one tensor."""
        return isinstance(self.rewriting.old_value(arg), Value)

    def _value(self, arg: fx.Node) -> Value:
        value = self.rewriting.old_value(arg)
        assert isinstance(value, Value), f"{arg} is not one tensor"
        return value

    def old_shape(self, arg: fx.Node) -> Shape:
        """Shape of a tensor node at full width."""
        return self._value(arg).shape

    def new_shape(self, arg: fx.Node) -> Shape:
        """Shape of a tensor node after pruning."""
        return self.rewriting.kept.shape(self._value(arg))

    def new_shapes(self, arg: fx.Node) -> list[Shape]:
        """Shapes of a node that returns several tensors, after pruning."""
        return [self.rewriting.kept.shape(value) for value in self.rewriting.old_value(arg)]

    def kept(self, arg: fx.Node, axis: int) -> npt.NDArray[np.bool_] | None:
        """Which indices of an axis stay; None where nothing on it can shrink."""
        return self.rewriting.kept.axis(self._value(arg), axis)

    def scalar(self, name: str, default: int) -> int:
        """New value of a recorded constant: the number of kept atoms among its labels."""
        labels = self.rewriting.trace.scalars.get((self.rewriting.origin[self.node], name))
        if labels is None:
            return default
        return int(self.rewriting.kept.units[self.rewriting.kept.groups.unit_of[labels]].sum())

    def places(self, index: Any, source: fx.Node, axis: int) -> Any:
        """An index along an axis, which names those places that are kept, as these are counted now."""
        known, kept = self.rewriting.trace.indices.get(self.rewriting.origin[self.node]), self.kept(source, axis)
        if known is None or kept is None or kept.all():
            return index
        found = known[kept[known]]
        counted = np.cumsum(kept)[found] - 1
        return self.rewriting.constant(self.node, counted) if isinstance(index, fx.Node) else counted.tolist()

    def evaluate(self, arg: Any) -> Any:
        """What an argument evaluates to in the pruned graph."""
        return self.rewriting.evaluate(arg)

    def evaluate_old(self, arg: Any) -> Any:
        """What an argument evaluates to in the original graph."""
        return self.rewriting.evaluate_old(arg)

    def takes_apart(self) -> bool:
        """Whether this node, as it is, splits its pruned input into the parts that are expected."""
        args, kwargs = self.evaluate(self.node.args), self.evaluate(self.node.kwargs)
        call = self.node.target
        try:
            parts = call(*args, **kwargs) if callable(call) else getattr(args[0], str(call))(*args[1:], **kwargs)
        except RuntimeError:  # sizes that do not add up
            return False
        if [tuple(part.shape) for part in parts] != self.new_shapes(self.node):
            return False
        self.settled.update(self.node.all_input_nodes)
        return True

    def size(self, arg: Any, expected: int) -> Any:
        """The argument, corrected to evaluate to ``expected``.

        A literal is replaced (-1 stays: it infers). A computed size is scaled by a ratio, so that factors which vary
        between calls (batch, resolution) keep doing so. One that is computed from sizes which shrink is computed as in the
        original first: ``x.shape[0] // heads`` is the batch for the old number of heads alone.
        """
        if not isinstance(arg, fx.Node):
            return arg if arg == -1 else expected
        computed = int(self.evaluate(arg))
        multiple = arg.target is operator.mul and any(map(self._divides, arg.all_input_nodes))
        if computed != expected or multiple:
            if any(map(self._follows, arg.all_input_nodes)):
                arg, computed = self._original(arg), int(self.evaluate_old(arg))
            arg = self._scaled(arg, computed, expected)
        self.settled.add(arg)
        return arg

    def _scaled(self, arg: fx.Node | int, computed: int, expected: int) -> fx.Node | int:
        if computed == 0 or expected == 0 or not isinstance(arg, fx.Node):
            return expected
        common = gcd(computed, expected)
        graph, result = self.node.graph, arg
        with graph.inserting_before(self.node):
            if expected != common:
                result = graph.call_function(operator.mul, (result, expected // common))
            if computed != common:
                result = graph.call_function(operator.floordiv, (result, computed // common))
        return result

    def pin(self) -> None:
        """Numbers that the node takes from shapes, and that are no sizes of its own, keep their original value.

        ``x.shape[-1] ** -0.5`` as an attention scale is one: the masked original has the full width there.
        """
        if self.node in self.rewriting.sizes:
            return
        for arg in self.node.all_input_nodes:
            if arg not in self.settled and self._follows(arg):
                self.node.replace_input_with(arg, self._original(arg))

    def _follows(self, arg: fx.Node) -> bool:
        """Whether a number is computed from a size that is not that of the original, whatever comes of it at the example inputs."""
        known = self.rewriting.follows
        if arg not in known:
            known[arg] = self._shrinks(arg) or (arg in self.rewriting.sizes and any(map(self._follows, arg.all_input_nodes)))
        return known[arg]

    def _divides(self, arg: fx.Node) -> bool:
        """Whether a number is a size that shrinks, divided and rounded."""
        return arg.target is operator.floordiv and self._follows(arg)

    def _shrinks(self, arg: fx.Node) -> bool:
        """Whether the node results in one number, which is not that of the original."""
        old = self.rewriting.sizes.get(arg)
        return isinstance(old, (int, float)) and old != self.evaluate(arg)

    def _original(self, arg: fx.Node) -> Any:
        """A number as the original computes it: sizes are scaled back, and the arithmetic on them is done again."""
        if not self._follows(arg):
            return arg
        old, new = self.rewriting.sizes[arg], self.evaluate(arg)
        graph = self.node.graph
        if any(map(self._follows, arg.all_input_nodes)):
            originals = {source: self._original(source) for source in arg.all_input_nodes}
            with graph.inserting_before(self.node):
                return graph.node_copy(arg, originals.__getitem__)
        if isinstance(old, bool) or not new:
            return old
        if isinstance(old, int):
            return self._scaled(arg, int(new), int(old))  # without where it came from, which is no part of a graph
        with graph.inserting_before(self.node):
            return graph.call_function(operator.mul, (arg, old / new))

    def replace(self, node: fx.Node, by: fx.Node) -> None:
        """Put another node in a node's place."""
        node.replace_all_uses_with(by)
        self.rewriting.origin[by] = self.rewriting.origin[node]
        self.node = by
        node.graph.erase_node(node)
