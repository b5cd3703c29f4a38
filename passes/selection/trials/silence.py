"""Tensors with which a graph computes, at full width, what it would compute without some units.

Where weights alone read a unit, zeros in these slices silence it, whatever its activation is (GELU, sigmoid, a bias). Where
anything else combines it with others (a mean over channels, a norm, queries and keys), it is missing instead: NaN, under the
arithmetic of the oracle (:mod:`graphprune.passes.verification.missing`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.arithmetic import is_fractional
from graphprune.channels.filters import Filter
from graphprune.channels.groups import Bools, Groups, Ints
from graphprune.channels.labels import Field, Value
from graphprune.channels.tape import Operation
from graphprune.ir.program import Program
from graphprune.passes.calibration.lanes import storage
from graphprune.rules import tensors_in, views_only

#: Operators that sum over channels, and which of their arguments they multiply.
_PRODUCTS: Final[Mapping[str, slice]] = {
    **{f"aten::{name}": slice(0, 2) for name in ("mm", "bmm", "mv", "dot", "vdot", "convolution", "_convolution")},
    **{f"aten::{name}": slice(1, 3) for name in ("addmm", "baddbmm")},
    "aten::_trilinear": slice(0, 3),
    "torchvision::deform_conv2d": slice(0, 2),
}
_MATRICES: Final = frozenset({"aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm"})


@dataclass(frozen=True)
class Silenced:
    """tensors: what takes the place of which tensor, by identity. missing: NaN in them marks what does not exist. start: the
    position in the graph of the first node that reads one of them."""

    tensors: Mapping[int, Tensor]
    missing: bool
    start: int


class Silence:
    """Finds the tensors that silence units of a program."""

    def __init__(self, program: Program, groups: Groups, filters: Sequence[Filter]) -> None:
        self._groups = groups
        self._tensors = program.tensors
        self._first = _first_readers(program)
        self._end = len(program.module.graph.nodes) - 1  # for units that nothing reads
        self._axes = list(_float_axes(program, groups))
        reading = {(name, axis) for name, axis, _ in reading_axes(program, groups, filters)}
        self._read = [(name, axis) in reading for name, axis, _ in self._axes]
        self._zeros = read_by_weights(groups, filters)

    def of(self, units: Sequence[int]) -> Silenced:
        """The tensors without some units of prunable groups."""
        gone = np.zeros(self._groups.unit_count, dtype=bool)
        gone[list(units)] = True
        missing = not self._zeros[gone].all()
        found: dict[int, Tensor] = {}
        for (name, axis, along), read in zip(self._axes, self._read, strict=True):
            places = np.flatnonzero(gone[along]) if missing or read else ()
            if len(places):
                tensor = self._tensors[name]
                new = found.get(id(tensor), tensor.detach())
                index = torch.as_tensor(places, device=new.device)
                found[id(tensor)] = new.index_fill(axis, index, torch.nan if missing else 0.0)
        return Silenced(found, missing, min((self._first[key] for key in found), default=self._end))


def reading_axes(program: Program, groups: Groups, filters: Sequence[Filter]) -> list[tuple[str, int, Ints]]:
    """Axes of weights that read prunable units, and the unit of each index; those of recurrent layers that make some, too."""
    makes = {(f.tensor, f.axis) for f in filters if f.makes} - {(f.tensor, f.axis) for f in filters if not f.makes}
    axes = _float_axes(program, groups)
    return [found for found in axes if program.tensors[found[0]].dim() > 1 and found[:2] not in makes]


def read_by_weights(groups: Groups, filters: Sequence[Filter]) -> Bools:
    """Which units are combined with others by nothing but products with parameters, so that zeros there silence them."""
    found = np.ones(groups.unit_count, dtype=bool)
    for group in groups.prunable:
        found[group.units] = group.statistics is None
    for f in filters:
        if f.weight:  # a zero in a parameter need not be one in the weight that is computed from it
            found[f.units] = False
    weights = {storage(tensor) for tensor in groups.trace.tape.held if tensor.dim() > 1}
    for step in groups.trace.tape.steps:
        for operation in step.operations:
            for field in _combined(operation, groups, weights):
                found[groups.unit_of[field.ravel()]] = False
    return found


def _combined(operation: Operation, groups: Groups, weights: set[int]) -> Iterator[Field]:
    """Labels of what an operator combines, products with parameters apart."""
    name = operation.operator._schema.name
    given = tensors_in((*operation.args, *operation.kwargs.values()))
    if name in _PRODUCTS:
        factors = operation.args[_PRODUCTS[name]]
        if not any(storage(factor) in weights for factor in factors):
            yield from _contracted(name, factors, groups)
    elif "scaled_dot_product" in name:
        yield from _along(given[:2], (-1, -1), groups)
    elif not views_only(operation.operator):
        yield from _lost(given, tensors_in((operation.output,)), groups)


def _contracted(name: str, factors: Sequence[Tensor], groups: Groups) -> Iterator[Field]:
    if name in _MATRICES:
        yield from _along(factors, (-1, -2), groups)
    else:
        for factor in factors:
            yield from _value(factor, groups).fields


def _along(tensors: Sequence[Tensor], axes: Sequence[int], groups: Groups) -> Iterator[Field]:
    """Labels whose units vary along an axis of a tensor; those of whole heads do not along the positions of a head."""
    for tensor, axis in zip(tensors, axes, strict=True):
        for field in _value(tensor, groups).fields:
            units = groups.unit_of[field]
            if (units != units.take([0], axis)).any():
                yield field


def _lost(given: Sequence[Tensor], made: Sequence[Tensor], groups: Groups) -> Iterator[Field]:
    """Labels of operands whose units no result has."""
    kept = [groups.unit_of[field.ravel()] for tensor in made for field in _value(tensor, groups).fields]
    left: Ints = np.concatenate([np.zeros(0, dtype=np.int64), *kept])
    for field in (field for tensor in given for field in _value(tensor, groups).fields):
        if not np.isin(groups.unit_of[field.ravel()], left).all():
            yield field


def _value(tensor: Tensor, groups: Groups) -> Value:
    """A tensor of the tape; one of which nothing is known has no labels."""
    known = groups.trace.known.get(id(tensor))
    return Value(tuple(tensor.shape)) if known is None else known[1]


def _float_axes(program: Program, groups: Groups) -> Iterator[tuple[str, int, Ints]]:
    """Tensors and axes with prunable units, and the unit of each index."""
    for name, axis, vector in groups.axes:
        if groups.shrinking[vector] and is_fractional(program.tensors[name]):
            yield name, axis, groups.vectors.units[groups.vectors[vector]]


def _first_readers(program: Program) -> dict[int, int]:
    """The position of the first node that reads each tensor, by the tensor's identity."""
    found: dict[int, int] = {}
    for position, node in enumerate(program.module.graph.nodes):
        for tensor in _read_by(node, program):
            found.setdefault(id(tensor), position)
    return found


def _read_by(node: fx.Node, program: Program) -> Iterator[Any]:
    if node.op == "get_attr":
        yield program.tensors.get(str(node.target))
    elif node.op == "call_module":
        module = program.module.get_submodule(str(node.target))
        yield from module.parameters()
        yield from module.buffers()
