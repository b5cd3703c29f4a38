"""Shuffles: runs of views that permute one axis (channel shuffle), found by their labels and not by their spelling.

Between ``view(b, g, c // g, h, w)`` and the ``view(b, c, h, w)`` that closes it, the labels lie on two axes. Keeping
those tensors rectangular would tie channels that have nothing to do with each other, and repeated shuffles would tie
them all. The pruned run is instead one ``index_select``, as cheap as the copy it replaces, so nothing is tied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx

from graphprune.channels.labels import Field, Value, axes_of


@dataclass(frozen=True)
class Shuffle:
    """``target`` is ``source`` with one axis permuted; ``interior`` are the nodes between, read by nobody else.

    before, after: labels along the axis in the source and in the target; each atom occurs once.
    """

    source: str
    target: str
    axis: int
    interior: tuple[str, ...]
    before: Field
    after: Field


def find_shuffles(graph: fx.Graph, values: Mapping[str, object], moving: frozenset[str]) -> list[Shuffle]:
    """All shuffles of a graph. ``moving`` names the nodes that only move elements."""
    found = []
    for node in graph.nodes:
        if node.name in moving:
            shuffle = _shuffle_ending_at(node, values, moving)
            if shuffle is not None:
                found.append(shuffle)
    return found


def _shuffle_ending_at(node: fx.Node, values: Mapping[str, object], moving: frozenset[str]) -> Shuffle | None:
    target = values[node.name]
    if not isinstance(target, Value) or _scattered(target):
        return None
    interior: list[str] = []
    source = node.args[0] if node.args else None
    while isinstance(source, fx.Node):
        value = values[source.name]
        if not isinstance(value, Value):
            return None
        if not _scattered(value):
            return _permutation(source.name, node.name, interior, value, target)
        if source.name not in moving or any(user is not node and user.name not in interior for user in source.users):
            return None  # somebody else reads the inside
        interior.append(source.name)
        source = source.args[0]
    return None


def _scattered(value: Value) -> bool:
    return any(len(axes_of(field)) > 1 for field in value.fields)


def _permutation(source: str, target: str, interior: list[str], old: Value, new: Value) -> Shuffle | None:
    if old.shape != new.shape or len(old.fields) != len(new.fields):
        return None
    moved = [(a, b) for a in old.fields for b in new.fields if axes_of(a) == axes_of(b) and a is not b and not np.array_equal(a, b)]
    if len(moved) != 1:
        return None
    before, after = moved[0][0].ravel(), moved[0][1].ravel()
    ordered = np.sort(before)
    if not np.array_equal(ordered, np.sort(after)) or (ordered[1:] == ordered[:-1]).any():
        return None
    return Shuffle(source, target, axes_of(moved[0][0])[0], tuple(interior), before, after)
