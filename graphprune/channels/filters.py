"""Filters: which parameters make the channels of a group, and which read them.

Read off the labels of every node that has parameters: an axis whose labels the node's result carries *makes* channels; another
axis of a matrix or kernel whose units the node's input carries *reads* them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import fx
from torch.fx.node import map_arg

from graphprune.channels.groups import Groups, Ints
from graphprune.channels.labels import Field, Value, axes_of
from graphprune.ir.program import Program
from graphprune.statistic import Place, Tap


@dataclass(frozen=True, eq=False)
class Filter:
    """One parameter axis of a matrix, kernel bank or embedding, in its role at one node.

    node: the node that uses it. tensor, axis: the parameter (by its first name) and its axis. weight: where the weight is
    computed from parameters (weight normalisation, a part of a fused projection), the node that does; axis and elements are
    then those of its result, and tensor one of the parameters. units: the unit of each index along the axis. makes: whether
    the channels are made here, or read. tap: the activation whose channels these are; None where it is no single tensor.
    elements: of the weight. macs: multiply-accumulates of the node at the example.
    """

    node: str
    tensor: str
    axis: int
    units: Ints
    makes: bool
    tap: Tap | None
    elements: int
    macs: int
    weight: str = ""


def find_filters(program: Program, groups: Groups) -> tuple[Filter, ...]:
    """All filters with prunable units, in the order of the graph."""
    finder = _Finder(program, groups)
    return tuple(found for node in program.module.graph.nodes for found in finder.at(node))


def taps_of(filters: Iterable[Filter], place: Place) -> tuple[Tap, ...]:
    """The activations that filters make (``produced``) or read (``consumed``), each once."""
    found = {(f.tap.node, f.tap.axis): f.tap for f in filters if f.tap is not None and f.makes == (place == "produced")}
    return tuple(found.values())


def coupled_axes(program: Program, groups: Groups, filters: Iterable[Filter]) -> tuple[str, ...]:
    """For each group whose channels several layers make one by one (a residual stream), one axis of a parameter, ``name[axis]``.

    A layer that gives each channel of its input its own kernel (depthwise) makes none: it goes on with those that it gets.
    """
    nodes = {node.name: node for node in program.module.graph.nodes}
    makers: dict[int, dict[str, str]] = {}
    for found in filters:
        read = [groups.trace.values.get(source.name) for source in nodes[found.node].all_input_nodes]
        fields = [field for value in read if isinstance(value, Value) for field in value.fields]
        goes_on = any(np.isin(found.units, groups.units_along(field)[1]).any() for field in fields)
        if found.makes and not goes_on:
            for group in np.unique(groups.group_of[found.units]).tolist():
                makers.setdefault(group, {})[found.node] = f"{found.tensor}[{found.axis}]"
    return tuple(next(iter(axes.values())) for group, axes in makers.items() if group >= 0 and len(axes) > 1)


class _Finder:
    def __init__(self, program: Program, groups: Groups) -> None:
        self.groups = groups
        self.values: Mapping[str, object] = groups.trace.values
        self.macs: dict[str, int] = {}
        for term in groups.trace.macs:
            amount = prod(factor if isinstance(factor, int) else factor.size for factor in term.factors)
            self.macs[term.node] = self.macs.get(term.node, 0) + amount
        self.constant: dict[fx.Node, tuple[str, ...]] = {}  # nodes that depend on parameters alone, with these
        self.first: dict[fx.Node, fx.Node] = {}  # of each such node, the first that computes the same
        self._computed: dict[str, fx.Node] = {}
        self.within: dict[str, dict[str, None]] = {}  # parameters in each module, by its path
        for name, first in ({name: name for name in groups.trace.parameters} | dict(groups.trace.aliases)).items():
            for end in (index for index, letter in enumerate(name) if letter == "."):
                self.within.setdefault(name[:end], {})[first] = None

    def at(self, node: fx.Node) -> list[Filter]:
        """The filters that a node uses."""
        own = self._note(node)
        result = self.values.get(node.name)
        if not isinstance(result, Value) or node in self.constant:
            return []
        weights: list[tuple[Sequence[str], str, Value]] = []  # parameters, the node that computes the weight from them, value
        for name in own:
            if name in self.groups.trace.parameters:
                weights.append(((name,), "", self.groups.trace.parameters[name]))
        for source in () if own else node.all_input_nodes:
            value = self.values.get(source.name)
            if source in self.constant and isinstance(value, Value):
                weights.append((self.constant[source], "" if source.op == "get_attr" else self.first[source].name, value))
        found = []
        for names, computed, value in weights:
            matrix = len(value.shape) > 1 and bool(self.macs.get(node.name))  # even if it has a single row or column
            if not matrix and sum(size > 1 for size in value.shape) < 2:
                continue  # a vector neither makes nor reads channels
            for field in value.fields:
                if self.groups.shrinking[self.groups.vectors.index(field)]:
                    found += self._role(node, names, computed, value, field)
        return found

    def _role(self, node: fx.Node, names: Sequence[str], computed: str, value: Value, field: Field) -> list[Filter]:
        result = self.values[node.name]
        assert isinstance(result, Value)
        axis, units = self.groups.units_along(field)
        atoms = _atoms(field, axis)
        made = next((out for out in result.fields if np.isin(atoms, out).all()), None)
        size, macs = prod(value.shape), self.macs.get(node.name, 0)
        name = next((name for name in names if self._holds(name, atoms)), names[0])

        def found(makes: bool, tap: Tap | None) -> list[Filter]:
            return [Filter(node.name, name, axis, units, makes, tap, size, macs, computed)]

        if made is not None:
            return found(True, self._tap(node, result, made))
        if not macs:
            return []
        for source in node.all_input_nodes:
            activation = self.values.get(source.name)
            for given in activation.fields if isinstance(activation, Value) and source not in self.constant else ():
                if np.isin(units, self.groups.units_along(given)[1]).all():
                    assert isinstance(activation, Value)
                    return found(False, self._tap(source, activation, given))
        return found(False, None)

    def _holds(self, name: str, atoms: Field) -> bool:
        value = self.groups.trace.parameters.get(name)
        return value is not None and any(np.isin(atoms, field).all() for field in value.fields)

    def _tap(self, node: fx.Node, value: Value, field: Field) -> Tap:
        axis, units = self.groups.units_along(field)
        return Tap(node.name, axis, units, value.shape)

    def _note(self, node: fx.Node) -> tuple[str, ...]:
        """Note whether a node depends on parameters alone; the parameters of its own module."""
        inputs = node.all_input_nodes
        own = tuple(self.within.get(str(node.target), ())) if node.op == "call_module" else ()
        if node.op == "get_attr":
            name = str(node.target)
            self.constant[node] = (self.groups.trace.aliases.get(name, name),)
        elif inputs and not own and all(source in self.constant for source in inputs):
            self.constant[node] = tuple(dict.fromkeys(name for source in inputs for name in self.constant[source]))
        if node in self.constant:
            args, kwargs = (map_arg(part, lambda source: self.first[source]) for part in (node.args, node.kwargs))
            self.first[node] = self._computed.setdefault(repr((node.op, node.target, args, kwargs)), node)
        return own


def _atoms(field: Field, axis: int) -> Field:
    """The atoms along one axis, at index 0 of all others."""
    assert axis in axes_of(field)
    return np.moveaxis(field, axis, 0).reshape(field.shape[axis], -1)[:, 0]
