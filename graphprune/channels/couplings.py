"""Couplings: why the slices of a group belong together. Which operators tied them, and where in the model's source.

Read off the trace of the channel analysis, for explanations; pruning itself asks for none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import numpy as np
from torch import fx
from torch.utils._pytree import tree_leaves

from graphprune.channels.groups import Bools, Group, Groups
from graphprune.channels.labels import Field, Value
from graphprune.channels.propagate import TiedBy, Trace

#: ``reads``: contracts over the channels. ``holds``: has a number for each. ``combines``: puts channels of several layers together,
#: element by element. ``arranges``: needs one axis of several on its own, so that slices of one layer go together.
Kind: TypeAlias = Literal["reads", "holds", "combines", "arranges"]


@dataclass(frozen=True)
class Coupling:
    """What one graph node ties.

    kind: see :data:`Kind`. node: its name; operator: the ATen operator that it ran; source: the line of the model.
    tensors: parameters and buffers whose channels this node meets here for the first time. with_: those that it ties them to.
    """

    kind: Kind
    node: str
    operator: str
    source: str
    tensors: tuple[str, ...]
    with_: tuple[str, ...]


def couplings(groups: Groups, graph: fx.Graph, group: Group) -> tuple[Coupling, ...]:
    """What ties the slices of a group, in the order of the graph: one entry for each node and kind.

    graph: the one that the groups were found in.
    """
    inside = np.zeros(groups.unit_count, dtype=bool)
    inside[group.units] = True
    sources = {node.name: node.meta.get("source", "") for node in graph.nodes}
    found: dict[tuple[str, Kind], Coupling] = {}
    for one in _Reader(groups.trace, inside[groups.unit_of]).read():
        key = (one.node, one.kind)
        known = found.get(key)
        if known is None:
            found[key] = replace(one, source=sources[one.node])
        else:
            found[key] = replace(known, tensors=_joined(known.tensors, one.tensors), with_=_joined(known.with_, one.with_))
    return tuple(found.values())


class _Reader:
    """Reads ties. inside: which atoms are in question."""

    def __init__(self, trace: Trace, inside: Bools) -> None:
        self._trace = trace
        self._inside = inside
        self._owners = [(name, field) for name, value in trace.parameters.items() for field in value.fields]
        self._owner = np.full(trace.space.size, -1, dtype=np.int64)
        for index, (_, field) in enumerate(self._owners):
            self._owner[field.ravel()] = index

    def read(self) -> Iterator[Coupling]:
        """Every tie of the atoms that an operator wrote down."""
        bounds = [0, *(tie.end for tie in self._trace.tied)]
        for (start, end), by in zip(pairwise(bounds), self._trace.tied, strict=True):
            for left, right in self._trace.space.ties[start:end]:
                if self._inside[left].any() and not np.array_equal(left, right):
                    first, second = self._names(left), self._names(right)
                    if first and second:
                        yield self._coupling(left, right, first, second, by)
                    self._pass_on(left, right)

    def _pass_on(self, left: Field, right: Field) -> None:
        """Atoms of no parameter (a fresh tensor that channels are written into) stand for the parameter that they were tied to."""
        first, second = self._owner[left], self._owner[right]
        self._owner[left] = np.where(first < 0, second, first)
        self._owner[right] = np.where(second < 0, first, second)

    def _coupling(self, left: Field, right: Field, first: tuple[str, ...], second: tuple[str, ...], by: TiedBy) -> Coupling:
        node, operator = by.node, by.operator
        if set(first) == set(second):
            return Coupling("arranges", node, operator, "", first, ())
        kind: Kind = "combines"
        if not self._goes_on(node, left, right):
            kind = "reads"
        elif any(self._flat(names) for names in (first, second)):
            kind = "holds"
        newer = self._newer(left, right)
        return Coupling(kind, node, operator, "", *((first, second) if newer is left else (second, first)))

    def _names(self, atoms: Field) -> tuple[str, ...]:
        owners = self._owner[atoms[self._inside[atoms]]]
        return tuple(dict.fromkeys(self._owners[owner][0] for owner in dict.fromkeys(owners.tolist()) if owner >= 0))

    def _flat(self, names: Iterable[str]) -> bool:
        """Whether these are all vectors: scales, biases, running statistics."""
        shapes = [self._trace.parameters[name].shape for name in names]
        return bool(shapes) and all(len(shape) == 1 for shape in shapes)

    def _goes_on(self, node: str, left: Field, right: Field) -> bool:
        """Whether the node's result still has the channels."""
        value = self._trace.values.get(node)
        leaves = tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Value))
        atoms = [field.ravel() for leaf in leaves if isinstance(leaf, Value) for field in leaf.fields]
        return bool(atoms) and bool(np.isin(np.concatenate((left, right)), np.concatenate(atoms)).any())

    @staticmethod
    def _newer(left: Field, right: Field) -> Field:
        """The side that was labelled last: atoms are numbered as they are made."""
        return left if left.max(initial=-1) > right.max(initial=-1) else right


def _joined(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def layers(tensors: Iterable[str]) -> tuple[str, ...]:
    """The modules that hold these parameters, in order; a parameter on its own stands for itself.

    >>> layers(["layer1.0.bn1.weight", "layer1.0.bn1.bias", "pos_embed"])
    ('layer1.0.bn1', 'pos_embed')
    """
    return tuple(dict.fromkeys(_layer(tensor) for tensor in tensors))


_OWN_NAMES: Final = ("weight", "bias", "running_mean", "running_var")


def _layer(tensor: str) -> str:
    path, _, leaf = tensor.rpartition(".")
    return path if path and leaf in _OWN_NAMES else tensor
