"""The label algebra: how sets of channels move through tensors. No operator is named here.

Every element of every parameter axis has an integer label, an *atom*. The abstract value of a tensor is a set of
*label fields* on disjoint sets of axes. A field is an integer array of the **rank of the tensor**, with size 1 on each
axis along which it does not vary; so broadcasting, permuting and slicing a field is what numpy does to an array.

Reading a field: element ``t[i0, ..., in]`` of the tensor exists in the pruned model if and only if, in every field,
the atom at that position (size-1 axes read at 0) is kept. Axes that no field varies along cannot shrink.

Two things are written down while values are combined, and solved once at the end (:mod:`graphprune.channels.groups`):
*ties* (these two atoms live and die together) and *freezes* (this atom must stay, for this reason).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from math import prod
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Field: TypeAlias = npt.NDArray[np.int64]
Shape: TypeAlias = tuple[int, ...]

_MOST_SHAPES: Final = 10_000  # of which is remembered what follows from them alone


class Reason(NamedTuple):
    """Why an atom is frozen: the operator, the graph node and the source line that froze it, in words."""

    text: str
    operator: str = ""
    node: str = ""
    source: str = ""

    def __str__(self) -> str:
        where = " at ".join(part for part in (self.node, self.source) if part)
        return f"{self.text} ({where})" if where else self.text


@dataclass(eq=False, slots=True)  # frozen ones take twice as long to make
class Value:
    """Abstract value of a tensor: its shape at the example inputs and its label fields on disjoint axes. Never modified.

    itemsize: bytes of one element. storage: identity of the memory that it views, so that aliases count once.
    stride: of the meta tensor.
    """

    shape: Shape
    fields: tuple[Field, ...] = ()
    itemsize: int = 0
    storage: int = 0
    stride: Shape = ()

    @property
    def labelled(self) -> frozenset[int]:
        """Axes along which some field varies."""
        return frozenset([axis for field in self.fields for axis in axes_of(field)])

    def on(self, axis: int) -> Field | None:
        """The field that varies along ``axis``, if any (it may vary along others too)."""
        axis %= len(self.shape)
        for field in self.fields:
            if field.shape[axis] > 1:
                return field
        return None

    def vector(self, axis: int) -> Field | None:
        """The labels along ``axis`` as a 1-D array, or None; the field must vary along no other axis."""
        field = self.on(axis)
        if field is None:
            return None
        assert field.shape[axis] == field.size, "restrict the field to one axis first"
        return field.reshape(-1)


def axes_of(field: Field) -> tuple[int, ...]:
    """Axes along which the field varies."""
    return _long_axes(field.shape)


@lru_cache(_MOST_SHAPES)
def _long_axes(shape: Shape) -> tuple[int, ...]:
    return tuple([axis for axis, size in enumerate(shape) if size > 1])


def along(vector: Field, axis: int, rank: int) -> Field:
    """A 1-D vector of labels as a field of the given rank that varies along one axis."""
    if rank == 1:
        return vector
    shape = [1] * rank
    shape[axis] = vector.size
    return vector.reshape(shape)


def simplify(field: Field) -> Field | None:
    """Drop the axes along which the atoms do not change; None when nothing is left."""
    for axis in axes_of(field):
        first = _first(field, axis)
        if (field == first).all():
            field = first
    return field if field.size > 1 else None


def _first(field: Field, axis: int) -> Field:
    """The field at index 0 of an axis, which stays."""
    return field[(slice(None),) * axis + (slice(0, 1),)]


class Holds(IntEnum):
    """What is in the memory of atoms that belong to no parameter."""

    NOTHING = 0  # or parts that parameters make
    ROWS = 1  # one number, but for rows that parameters make
    CONSTANT = 2  # one number
    MIXED = 3  # numbers beside what parameters make


class LabelSpace:
    """All atoms of one analysis, with the ties and freezes written down so far. blocks: atoms as they were made."""

    def __init__(self) -> None:
        self.size = 0
        self.blocks: list[Field] = []
        self.ties: list[tuple[Field, Field]] = []
        self.freezes: list[tuple[Field, Reason]] = []
        self.statistics: list[tuple[Field, Reason]] = []
        self._soft_starts: list[int] = []
        self._soft_ends: list[int] = []
        self._holds: list[Holds] = []

    def fresh(self, count: int, *, soft: bool = False, unfilled: bool = False) -> Field:
        """``count`` new atoms, 1-D. Soft atoms belong to no parameter (padding, fresh constants): they yield in conflicts.

        unfilled: they are of memory that holds nothing until something is written there.
        """
        start, self.size = self.size, self.size + count
        if soft:
            self._soft_starts.append(start)
            self._soft_ends.append(self.size)
            self._holds.append(Holds.NOTHING if unfilled else Holds.CONSTANT)
        block = np.arange(start, self.size, dtype=np.int64)
        self.blocks.append(block)
        return block

    def soft(self, field: Field) -> npt.NDArray[np.bool_]:
        """Which atoms of a field belong to no parameter."""
        if not self._soft_starts:
            return np.zeros(field.shape, dtype=bool)
        index = self._soft_block(field)
        found: npt.NDArray[np.bool_] = (index >= 0) & (field < np.asarray(self._soft_ends)[index])
        return found

    def padding(self, field: Field) -> npt.NDArray[np.bool_]:
        """Which atoms of a field belong to no parameter, and hold something all the same."""
        found = self.soft(field)
        found[found] = np.asarray(self._holds)[self._soft_block(field[found])] >= Holds.CONSTANT
        return found

    @property
    def has_soft(self) -> bool:
        """Whether there are atoms that belong to no parameter."""
        return bool(self._holds)

    def write(self, field: Field, made: bool) -> None:
        """Note that something was written where these atoms are. made: of parameters alone."""
        for block in np.unique(self._soft_block(field[self.soft(field)])).tolist():
            holds, whole = self._holds[block], range(self._soft_starts[block], self._soft_ends[block])
            if holds is Holds.NOTHING:
                self._holds[block] = holds if made else Holds.MIXED
            elif not np.array_equal(field.ravel(), whole):
                self._holds[block] = Holds.MIXED
            elif holds is Holds.CONSTANT and made:
                self._holds[block] = Holds.ROWS

    def _soft_block(self, field: Field) -> npt.NDArray[np.intp]:
        return np.searchsorted(self._soft_starts, field, side="right") - 1

    def tie(self, left: Field, right: Field) -> None:
        """Atoms at equal positions (numpy broadcasting) live and die together."""
        if left is right:
            return
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        self.ties.append((left.ravel(), right.ravel()))

    def freeze(self, field: Field, reason: Reason) -> None:
        """Atoms that must stay."""
        self.freezes.append((field.ravel(), reason))

    def note_statistics(self, field: Field, reason: Reason) -> None:
        """Atoms over which a statistic is taken: allowed, and from now on taken over the kept ones only.

        Padding counts in a statistic whatever becomes of the channels that it is added to, so soft atoms are frozen: all but those
        of memory into which rows were written whole, which lose with their channels what the others, constant along them, do.
        """
        padding = self.padding(field)
        if padding.any():
            self.freeze(field[padding], reason)
        self.statistics.append((field.ravel(), reason))

    # -- combinations of the above ------------------------------------------------------------------------------

    def restrict(self, field: Field, axes: Iterable[int], reason: Reason) -> Field | None:
        """Make the field vary along ``axes`` only, tying its atoms along the others; frozen (None) when none is left."""
        keep = set(axes)
        drop = [axis for axis in axes_of(field) if axis not in keep]
        if not drop:
            return field
        if len(drop) == len(axes_of(field)):
            self.freeze(field, reason)
            return None
        rest = field
        for axis in drop:
            rest = _first(rest, axis)
        self.tie(field, rest)
        return rest

    def match(self, left: Field | None, right: Field | None, reason: Reason) -> None:
        """Two 1-D label vectors of one contracted axis: tied; a partner that cannot shrink freezes the other."""
        if left is not None and right is not None:
            self.tie(left, right)
        elif (single := left if left is not None else right) is not None:
            self.freeze(single, reason)

    def merge(self, fields: Iterable[Field], fixed: Iterable[int], reason: Reason) -> tuple[Field, ...]:
        """Fields of operands that meet in one tensor, made disjoint: ties where they overlap, freezes on fixed axes.

        An axis that a field gives up to agree with another is at full size from then on, and fixed for all.
        """
        stuck = set(fixed)
        result: list[Field] = []
        for new in fields:
            field: Field | None = new
            if stuck:
                field = self.restrict(new, [axis for axis in axes_of(new) if axis not in stuck], reason)
            while field is not None:
                varied = set(axes_of(field))
                other = next((old for old in result if varied & set(axes_of(old))), None)
                if other is None:
                    result.append(field)
                    break
                _discard(result, other)
                lost = varied ^ set(axes_of(other))
                field = self._unify(field, other, reason)
                if lost:
                    stuck |= lost
                    rest = [self.restrict(old, [axis for axis in axes_of(old) if axis not in lost], reason) for old in result]
                    result = [old for old in rest if old is not None]
        return tuple(result)

    def _unify(self, field: Field, other: Field, reason: Reason) -> Field | None:
        common = set(axes_of(field)) & set(axes_of(other))
        right = self.restrict(other, common, reason)
        assert right is not None
        self.tie(field, right)
        return field if field.shape == right.shape and self.padding(right).any() and not self.padding(field).any() else right

    def join(self, operands: Sequence[Value], shape: Shape, reason: Reason) -> tuple[Field, ...]:
        """Fields of the element-wise combination of operands that broadcast to ``shape``.

        An operand of size 1 on an axis says nothing about it (broadcasting is not coupling). An operand that has an
        axis at full size without labels holds data that cannot shrink, and fixes the axis for all.
        """
        rank = len(shape)
        fields: list[Field] = []
        fixed: set[int] = set()
        for value in operands:
            lead = rank - len(value.shape)
            fields.extend(field.reshape((1,) * lead + field.shape) if lead else field for field in value.fields)
            labelled = value.labelled
            fixed.update(axis + lead for axis, size in enumerate(value.shape) if size > 1 and axis not in labelled)
        return self.merge(fields, fixed, reason)

    def reshape(self, value: Value, shape: Shape, reason: Reason) -> tuple[Field, ...]:
        """Fields after a reshape. Independent fields that are merged into one axis cannot both stay free."""
        moved = [(field, _reshape_field(field, value.shape, shape)) for field in value.fields]
        if len(moved) > 1:  # the widest field that belongs to parameters wins a conflict; the others keep their full extent
            moved.sort(key=lambda pair: (self.soft(pair[0].flat[:1]).all(), -pair[0].size))
        result: list[Field] = []
        for old, new in moved:
            if new is None:
                continue
            taken = {axis for field in result for axis in axes_of(field)}
            if taken & set(axes_of(new)):
                self.freeze(old, reason)
            else:
                result.append(new)
        return tuple(result)


def _discard(fields: list[Field], field: Field) -> None:
    """Remove by identity (arrays do not compare to a truth value)."""
    for index, candidate in enumerate(fields):
        if candidate is field:
            del fields[index]
            return


def _blocks(old: Shape, new: Shape) -> list[tuple[list[int], list[int]]]:
    """Smallest runs of old axes and new axes of equal size: the independent parts of a reshape."""
    blocks: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(old) and j < len(new):
        left, right = [i], [j]
        size_left, size_right = old[i], new[j]
        i, j = i + 1, j + 1
        while size_left != size_right:
            if size_left < size_right:
                left.append(i)
                size_left *= old[i]
                i += 1
            else:
                right.append(j)
                size_right *= new[j]
                j += 1
        blocks.append((left, right))
    return blocks


def _reshape_field(field: Field, old: Shape, new: Shape) -> Field | None:
    source, target, exact = _reshaped(axes_of(field), old, new)
    if exact:
        return field.reshape(target)
    whole = field if field.size == prod(source) else np.broadcast_to(field, source)
    return simplify(whole.reshape(target))


@lru_cache(_MOST_SHAPES)
def _reshaped(varied: tuple[int, ...], old: Shape, new: Shape) -> tuple[Shape, Shape, bool]:
    """How a field that varies along some axes is reshaped: the shape at which it fills its blocks of axes, the one that these
    become, and whether each of them is one long axis before and after."""
    source, target = [1] * len(old), [1] * len(new)
    exact = True
    for left, right in _blocks(old, new):
        if not set(varied) & set(left):
            continue
        for axis in left:
            source[axis] = old[axis]
        for axis in right:
            target[axis] = new[axis]
        exact &= len([a for a in left if old[a] > 1]) == 1 and len([a for a in right if new[a] > 1]) == 1
    assert prod(source) == prod(target)
    return tuple(source), tuple(target), exact
