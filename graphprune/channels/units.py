"""From atoms to units: the ties of an abstract execution solved, and the units along all tensor axes in one array."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from itertools import accumulate, pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from graphprune.channels.labels import Field, LabelSpace, along, axes_of

Ints = npt.NDArray[np.int64]
Tie: TypeAlias = tuple[Field, Field]


class UnitVectors:
    """The units along the axis that shrinks of each field, end to end, so that one array operation is about all of them.

    Fields that hold the same units by construction share a vector: they show one array whole, or whole arrays that
    were tied. unit_of: unit of every atom, numbered by their first atoms. count: number of units. units: all vectors.
    sizes: of each vector. bounds: where each vector begins, and where the last one ends.
    """

    def __init__(self, fields: Iterable[Field], space: LabelSpace) -> None:
        self._fields = {id(field): field for field in fields}
        wide = {key: field for key, field in self._fields.items() if field.size not in field.shape}
        arrays = [(_array(left), _array(right)) for left, right in space.ties]
        self.unit_of, self.count = _units(space, arrays, wide.values())
        self._wide_axes = {key: _shrinking_axis(self.unit_of[field]) for key, field in wide.items()}
        find = _find_tied(arrays)
        self._index: dict[int, int] = {}
        numbers: dict[int, int] = {}
        vectors: list[Field] = []
        for key, field in self._fields.items():
            number = self._index[key] = numbers.setdefault(-key if key in wide else find(_array(field)), len(vectors))
            if number == len(vectors):
                vectors.append(_atoms_along(field, self.axis(field)))
        self.sizes = [vector.size for vector in vectors]
        self.bounds: list[int] = [0, *accumulate(self.sizes)]
        self.units: Ints = self.unit_of[_concatenate(vectors)]

    def axis(self, field: Field) -> int:
        """The axis along which the field shrinks: the one that holds all its atoms, or that of a field over several."""
        size, shape = field.size, field.shape
        if size in shape:
            return shape.index(size)
        axis = self._wide_axes[id(field)]
        assert axis is not None, "fields are rectangular once ties are solved"
        return axis

    def index(self, field: Field) -> int:
        """Number of the field's vector."""
        return self._index[id(field)]

    def __contains__(self, field: Field) -> bool:
        """Whether a field has a vector: those of values that are gone by the end of the analysis (inside of shuffles) have none."""
        return id(field) in self._index

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self.sizes)

    def __getitem__(self, index: int) -> slice:
        """Where a vector lies in ``units`` and in arrays like it."""
        return slice(self.bounds[index], self.bounds[index + 1])

    @cached_property
    def owners(self) -> Ints:
        """Number of the vector that each entry of ``units`` belongs to."""
        return np.repeat(np.arange(len(self)), self.sizes)


def _concatenate(vectors: Sequence[Field]) -> Field:
    return np.concatenate(vectors) if vectors else np.zeros(0, dtype=np.int64)


def _atoms_along(field: Field, axis: int) -> Field:
    """The atoms along one axis, at index 0 of all others."""
    if field.size == field.shape[axis]:
        return field.reshape(-1)
    return field[tuple(slice(None) if other == axis else 0 for other in range(field.ndim))]


def _shrinking_axis(units: Ints) -> int | None:
    """The one axis along which units vary; None when they vary along several."""
    return next((a for a in axes_of(units) if (units == along(_atoms_along(units, a), a, units.ndim)).all()), None)


def _array(field: Field) -> int:
    """The identity of the array that the field shows whole and in order."""
    base = field.base
    return id(base) if base is not None and base.size == field.size and field.flags.c_contiguous else id(field)


def _find_tied(arrays: Iterable[tuple[int, int]]) -> Callable[[int], int]:
    """One identity for all arrays that were tied whole, given the identities of each two that were (union-find)."""
    above: dict[int, int] = {}

    def find(key: int) -> int:
        while (up := above.get(key, key)) != key:
            above[key] = key = above.get(up, up)
        return key

    for left, right in arrays:
        first, second = find(left), find(right)
        if first != second:
            above[second] = first
    return find


def _units(space: LabelSpace, arrays: Sequence[tuple[int, int]], wide: Iterable[Field]) -> tuple[Ints, int]:
    """Unit of every atom and their number, after tying what must be tied for every tensor to stay rectangular.

    arrays: the identities of the arrays that the two sides of each tie show.
    """
    blocks, ties = _blocks(space, arrays)
    units, count = _merge(*blocks, ties)
    while True:
        solved = len(space.ties)
        for field in wide:
            if _shrinking_axis(units[field]) is None:
                # Nothing asked for one axis on its own: the innermost shrinks, the outer ones keep their structure.
                axis = axes_of(field)[-1]
                space.tie(field, along(_atoms_along(field, axis), axis, field.ndim))
        if len(space.ties) == solved:
            return units, count
        units, count = _merge(units, count, space.ties[solved:])


def _blocks(space: LabelSpace, arrays: Sequence[tuple[int, int]]) -> tuple[tuple[Ints, int], list[Tie]]:
    """Units as far as blocks of fresh atoms were tied whole to older atoms, and all other ties, which are few.

    A tensor's axis gets fresh atoms where it is first used, and is tied at once to what it is used with: taking over
    the units of that, block by block, is cheaper than solving for millions of atoms.
    """
    number = {id(block): index for index, block in enumerate(space.blocks)}
    begins = [0, *accumulate(block.size for block in space.blocks)]
    source: dict[int, Field] = {}
    others: list[Tie] = []
    for (left, right), (one, two) in zip(space.ties, arrays, strict=True):
        first, second = number.get(one, -1), number.get(two, -1)
        newer, other = (second, left) if second > first else (first, right)
        if first != second and newer not in source and (min(first, second) >= 0 or other.max(initial=-1) < begins[newer]):
            source[newer] = other
        else:
            others.append((left, right))
    units, count = np.empty(space.size, dtype=np.int64), 0
    for index, (begin, end) in enumerate(pairwise(begins)):
        if index in source:
            units[begin:end] = units[source[index]]
        else:
            units[begin:end] = np.arange(count, count + end - begin)
            count += end - begin
    return (units, count), others


def _merge(units: Ints, count: int, ties: Sequence[Tie]) -> tuple[Ints, int]:
    """Units and their number after some more ties, numbered by their first atoms as before.

    Each round hooks every root to the smallest one that it is tied to: rounds are logarithmic in the number of units.
    """
    if not ties:
        return units, count
    left, right = (units[np.concatenate(side)] for side in zip(*ties, strict=True))
    root = np.arange(count)
    while left.size:
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while ((higher := root[root]) != root).any():
            root = higher
        left, right = root[left], root[right]
        apart = left != right
        left, right = left[apart], right[apart]
    roots = np.flatnonzero(root == np.arange(count))
    number = np.empty(count, dtype=np.int64)
    number[roots] = np.arange(roots.size)
    return number[root][units], roots.size
