"""Filters: which parameters make the channels of a group, and which read them.

Read off the labels of every node that has parameters: an axis whose labels the node's result carries *makes* channels; another
axis of a matrix or kernel whose units the node's input carries *reads* them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from torch import fx

from graphprune.groups import Groups, Ints
from graphprune.labels import Field, Value, axes_of
from graphprune.program import Program
from graphprune.statistic import Place, Tap


@dataclass(frozen=True, eq=False)
class Filter:
    """One parameter axis of a matrix, kernel bank or embedding, in its role at one node.

    node: the node that uses it. tensor, axis: the parameter (by its first name) and its axis. units: the unit of each index
    along the axis. makes: whether the channels are made here, or read. tap: the activation whose channels these are; None
    where it is no single tensor. elements: parameters in the tensor. macs: multiply-accumulates of the node at the example.
    """

    node: str
    tensor: str
    axis: int
    units: Ints
    makes: bool
    tap: Tap | None
    elements: int
    macs: int


def find_filters(program: Program, groups: Groups) -> tuple[Filter, ...]:
    """All filters with prunable units, in the order of the graph."""
    finder = _Finder(program, groups)
    return tuple(found for node in program.module.graph.nodes for found in finder.at(node))


def taps_of(filters: Iterable[Filter], place: Place) -> tuple[Tap, ...]:
    """The activations that filters make (``produced``) or read (``consumed``), each once."""
    found = {(f.tap.node, f.tap.axis): f.tap for f in filters if f.tap is not None and f.makes == (place == "produced")}
    return tuple(found.values())


class _Finder:
    def __init__(self, program: Program, groups: Groups) -> None:
        self.groups = groups
        self.values: Mapping[str, object] = groups.trace.values
        self.macs: dict[str, int] = {}
        for term in groups.trace.macs:
            amount = prod(factor if isinstance(factor, int) else factor.size for factor in term.factors)
            self.macs[term.node] = self.macs.get(term.node, 0) + amount
        self.constant: dict[fx.Node, tuple[str, ...]] = {}  # nodes that depend on parameters alone, with these
        self.within: dict[str, dict[str, None]] = {}  # parameters in each module, by its path
        for name, first in ({name: name for name in groups.trace.parameters} | dict(groups.trace.aliases)).items():
            for end in (index for index, letter in enumerate(name) if letter == "."):
                self.within.setdefault(name[:end], {})[first] = None

    def at(self, node: fx.Node) -> list[Filter]:
        """The filters that a node uses."""
        names = self._parameters(node)
        result = self.values.get(node.name)
        if not names or not isinstance(result, Value) or node in self.constant:
            return []
        found = []
        for name in names:
            value = self.groups.trace.parameters.get(name)
            if value is None or sum(size > 1 for size in value.shape) < 2:
                continue  # a vector neither makes nor reads channels
            for field in value.fields:
                vector = self.groups.vectors.index(field)
                if self.groups.shrinking[vector]:
                    axis, units = self.groups.units_along(field)
                    found += self._role(node, name, value, axis, units, field)
        return found

    def _role(self, node: fx.Node, name: str, value: Value, axis: int, units: Ints, field: Field) -> list[Filter]:
        result = self.values[node.name]
        assert isinstance(result, Value)
        atoms = _atoms(field, axis)
        made = next((out for out in result.fields if np.isin(atoms, out).all()), None)
        size, macs = prod(value.shape), self.macs.get(node.name, 0)
        if made is not None:
            return [Filter(node.name, name, axis, units, True, self._tap(node, result, made), size, macs)]
        if not macs:
            return []
        for source in node.all_input_nodes:
            activation = self.values.get(source.name)
            for given in activation.fields if isinstance(activation, Value) and source not in self.constant else ():
                if np.isin(units, self.groups.units_along(given)[1]).all():
                    assert isinstance(activation, Value)
                    return [Filter(node.name, name, axis, units, False, self._tap(source, activation, given), size, macs)]
        return [Filter(node.name, name, axis, units, False, None, size, macs)]

    def _tap(self, node: fx.Node, value: Value, field: Field) -> Tap:
        axis, units = self.groups.units_along(field)
        return Tap(node.name, axis, units, value.shape)

    def _parameters(self, node: fx.Node) -> tuple[str, ...]:
        """First names of the parameters that a node uses, itself or through nodes that depend on parameters alone."""
        if node.op == "get_attr":
            name = str(node.target)
            self.constant[node] = (self.groups.trace.aliases.get(name, name),)
            return self.constant[node]
        inputs = node.all_input_nodes
        own = self.within.get(str(node.target), ()) if node.op == "call_module" else ()
        names = tuple(dict.fromkeys((*own, *(name for source in inputs for name in self.constant.get(source, ())))))
        if inputs and all(source in self.constant for source in inputs):
            self.constant[node] = names
        return names


def _atoms(field: Field, axis: int) -> Field:
    """The atoms along one axis, at index 0 of all others."""
    assert axis in axes_of(field)
    return np.moveaxis(field, axis, 0).reshape(field.shape[axis], -1)[:, 0]
