"""Units and groups: what the ties and freezes of an abstract execution amount to.

**Unit**: one connected component of atoms, the smallest thing that can be removed. **Group**: all units that touch the
same tensor axes equally often; every axis length is then an integer combination of group widths. One group has one
width symbol, and is ranked and budgeted as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import gcd, prod

import networkx as nx
import numpy as np
import numpy.typing as npt
import sympy
from scipy.sparse import csr_array

from graphprune.channels.group_names import named, new_name, unknown
from graphprune.channels.labels import Field, Reason, Value, axes_of
from graphprune.channels.propagate import Trace
from graphprune.channels.units import UnitVectors
from graphprune.text import listed

FROZEN = -1  # in place of a group index: the unit must stay
FREE, ORPHAN = -1, -2  # in place of a freeze index: nothing freezes the unit; it touches no parameter (padding, constants)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One tensor axis that a group's units have slices of; ``multiplicity`` indices for each unit."""

    tensor: str
    axis: int
    multiplicity: int


class _Members:
    """The members of all groups, listed when one is first read: pruning itself asks for none of them."""

    def __init__(self, axes: Sequence[tuple[str, int, int]], table: csr_array) -> None:
        self._axes = axes
        self._table = table

    @cached_property
    def by_group(self) -> Sequence[tuple[Member, ...]]:
        """Members by column of the table, in the order of the tensor axes."""
        found: list[list[Member]] = [[] for _ in range(self._table.shape[1])]
        bounds, groups, counts = (part.tolist() for part in (self._table.indptr, self._table.indices, self._table.data))
        for tensor, axis, vector in self._axes:
            for place in range(bounds[vector], bounds[vector + 1]):
                found[groups[place]].append(Member(tensor, axis, counts[place]))
        return [tuple(members) for members in found]


@dataclass(frozen=True)
class Lengths:
    """The different axis lengths of a model: ``constants + slopes @ widths``. of: which one each vector has."""

    constants: Ints
    slopes: csr_array
    of: Ints


@dataclass(frozen=True)
class Group:
    """Units that are ranked and budgeted together, or stay together for a reason.

    units: unit ids, in order of their first atom. reason: why it is frozen, or None. statistics: a normalisation or
    mean is taken over its units (over the kept ones, once pruned).
    """

    index: int
    name: str
    units: Ints
    reason: Reason | None
    statistics: Reason | None
    _members: _Members = field(repr=False, compare=False)
    _column: int = field(repr=False, compare=False)

    @property
    def members(self) -> tuple[Member, ...]:
        """Slices of parameters and buffers that each unit has."""
        return self._members.by_group[self._column]

    @property
    def size(self) -> int:
        """Number of units (the group's full width)."""
        return int(self.units.size)

    @property
    def channels_per_unit(self) -> int:
        """Indices that one unit takes on each of its axes, as far as they agree (64 for an attention head of 64)."""
        return gcd(*(member.multiplicity for member in self.members))

    @property
    def symbol(self) -> sympy.Symbol:
        """The width symbol of the group in symbolic sizes and costs."""
        return sympy.Symbol(f"w{self.index}", integer=True, positive=True)

    def _repr_html_(self) -> str:
        from graphprune.html import of_group

        return of_group(self)


class Groups:
    """The result of the channel analysis (immutable once built).

    trace: the abstract execution. vectors: the units along every tensor axis. axes: axes of parameters and buffers that
    have units: tensor, axis, index of the vector. unit_of: unit id of every atom. group_of: group index of every unit,
    FROZEN for units that must stay. prunable: groups by index. frozen: groups that must stay, with reasons.
    """

    def __init__(self, trace: Trace, exclude: Sequence[tuple[Field, Reason]] = ()) -> None:
        self.trace = trace
        for labels, reason in exclude:
            trace.space.freeze(labels, reason)
        self.vectors = UnitVectors(_all_fields(trace), trace.space)
        self.unit_of, self.unit_count = self.vectors.unit_of, self.vectors.count
        self._decision: tuple[object, Kept] | None = None
        self.axes = [
            (name, self.vectors.axis(labels), self.vectors.index(labels))
            for name, value in trace.parameters.items()
            for labels in value.fields
        ]
        reasons = self._unit_reasons()
        columns, first = self._partition(reasons)
        self._sizes = np.bincount(columns, minlength=first.size)
        self._table = self._occurrences(columns)
        self.prunable, self.frozen = self._form_groups(columns, first, reasons[first])
        self.group_of = np.where(columns < len(self.prunable), columns, FROZEN)

    # -- building ------------------------------------------------------------------------------------------------

    def _first_note(self, notes: Sequence[tuple[Field, Reason]]) -> Ints:
        """For each unit, the index of the first note on one of its atoms, or -1."""
        first = np.full(self.unit_count, -1, dtype=np.int64)
        if notes:
            index = np.repeat(np.arange(len(notes)), [atoms.size for atoms, _ in notes])
            atoms = np.concatenate([atoms for atoms, _ in notes])
            first[self.unit_of[atoms[::-1]]] = index[::-1]  # the last assignment to a unit counts
        return first

    def _unit_reasons(self) -> Ints:
        """Index of the first freeze of each unit, FREE for free ones, ORPHAN for those that nothing is saved by: they have no slice
        of any parameter and a part in no product."""
        used = np.zeros(len(self.vectors), dtype=bool)
        used[[vector for name, _, vector in self.axes if name in self.trace.weights]] = True
        factors = [factor for term in self.trace.macs for factor in term.factors if not isinstance(factor, int)]
        used[[self.vectors.index(factor) for factor in factors if factor in self.vectors]] = True
        owned = np.zeros(self.unit_count, dtype=bool)
        owned[self.vectors.units[used[self.vectors.owners]]] = True
        first = self._first_note(self.trace.space.freezes)
        return np.where((first == FREE) & ~owned, ORPHAN, first)

    def _partition(self, reasons: Ints) -> tuple[Ints, Ints]:
        """The class of each unit, and the first unit of each class: prunable classes first, orphans last.

        A class has one reason, and occurs equally often on each tensor axis. What is compared is a 64-bit hash of that:
        the sum of the axes' and the reason's random keys.
        """
        count = len(self.vectors)
        keys = np.random.default_rng(0).integers(0, 2**64, size=count + len(self.trace.space.freezes) + 2, dtype=np.uint64)
        signature = keys[count + 2 + reasons]
        np.add.at(signature, self.vectors.units, np.repeat(keys[:count], self.vectors.sizes))
        runs = _runs(signature)
        _, run, inverse = np.unique(signature[runs], return_index=True, return_inverse=True)
        first = runs[run]
        stays = np.where(reasons[first] == FREE, 0, np.where(reasons[first] == ORPHAN, 2, 1))
        order = np.lexsort((first, stays))
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        return np.repeat(rank[inverse], np.diff(runs, append=reasons.size)), first[order]

    def _occurrences(self, columns: Ints) -> csr_array:
        """How many indices of each vector (row) one unit of each class (column) takes."""
        along = columns[self.vectors.units]
        runs = _runs(along, self.vectors.bounds)
        rows = np.searchsorted(runs, self.vectors.bounds)
        table = csr_array((np.diff(runs, append=along.size), along[runs], rows), shape=(len(self.vectors), self._sizes.size))
        table.sum_duplicates()  # sorts, too
        table.data //= self._sizes[table.indices]
        return table

    def _form_groups(self, columns: Ints, first: Ints, reasons: Ints) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        units = np.split(np.argsort(columns, kind="stable"), np.cumsum(self._sizes)[:-1])
        statistics = self._first_note(self.trace.space.statistics)[first].tolist()
        tensors = [tensor for tensor, _, _ in self.axes] + ["(none)"]
        made_by = self._first_axes()
        members = _Members(self.axes, self._table)
        prunable: list[Group] = []
        frozen: list[Group] = []
        names: set[str] = set()
        for column, (reason, note) in enumerate(zip(reasons.tolist(), statistics, strict=True)):
            if reason == ORPHAN:
                break
            why = None if reason == FREE else self.trace.space.freezes[reason][1]
            target = prunable if why is None else frozen
            name = new_name(tensors[made_by[column]], names if why is None else set())
            statistic = None if note < 0 else self.trace.space.statistics[note][1]
            target.append(Group(len(target), name, units[column], why, statistic, members, column))
        return tuple(prunable), tuple(frozen)

    def _first_axes(self) -> list[int]:
        """For each class of units, the first tensor axis that has it; one past the last for none."""
        axis_of = np.full(len(self.vectors), len(self.axes))
        axis_of[[vector for _, _, vector in reversed(self.axes)]] = np.arange(len(self.axes))[::-1]
        first = np.full(self._sizes.size, len(self.axes))
        np.minimum.at(first, self._table.indices, np.repeat(axis_of, np.diff(self._table.indptr)))
        return first.tolist()

    # -- sizes -----------------------------------------------------------------------------------------------------

    def units_along(self, field: Field) -> tuple[int, Ints]:
        """The one axis along which a (rectangular) field's units vary, and the units along it."""
        return self.vectors.axis(field), self.vectors.units[self.vectors[self.vectors.index(field)]]

    @cached_property
    def shrinking(self) -> list[bool]:
        """Whether each vector has prunable units."""
        found: list[bool] = (np.diff(self._affine[1].indptr) > 0).tolist()
        return found

    @cached_property
    def _affine(self) -> tuple[Ints, csr_array]:
        """``length = constant + coefficients @ widths`` for all vectors."""
        prunable = len(self.prunable)
        frozen = np.append(np.zeros(prunable, dtype=np.int64), self._sizes[prunable:])
        return self._table @ frozen, self._table[:, :prunable]

    def lengths(self, widths: npt.ArrayLike) -> Floats:
        """Length of every vector for widths of shape (..., groups); shape (..., vectors)."""
        constants, coefficients = self._affine
        given = np.asarray(widths, dtype=np.float64)
        lengths = (coefficients @ given.reshape(prod(given.shape[:-1]), -1).T).T + constants
        shaped: Floats = lengths.reshape(*given.shape[:-1], constants.size)
        return shaped

    @cached_property
    def distinct_lengths(self) -> Lengths:
        """All different lengths, those of equal functions of the widths once."""
        constants, coefficients = self._affine
        bounds = coefficients.indptr.tolist()
        rows = [coefficients.indices[a:b].tobytes() + coefficients.data[a:b].tobytes() for a, b in pairwise(bounds)]
        places: dict[tuple[int, bytes], int] = {}
        keys = zip(constants.tolist(), rows, strict=True)
        of = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
        _, first = np.unique(of, return_index=True)
        return Lengths(constants[first], coefficients[first], of)

    def linear(self, field: Field) -> tuple[int, Mapping[int, int]]:
        """Length of the field's axis as ``constant + sum(coefficient * width)``: the constant, and coefficients by group."""
        vector = self.vectors.index(field)
        constants, coefficients = self._affine
        terms = slice(*coefficients.indptr[vector : vector + 2].tolist())
        pairs = zip(coefficients.indices[terms].tolist(), coefficients.data[terms].tolist(), strict=True)
        return int(constants[vector]), dict(pairs)

    def remember(self, decision: object, kept: Kept) -> None:
        """Note what a decision made on these groups keeps, so that carrying it out need not derive it again."""
        self._decision = (decision, kept)

    def remembered(self, decision: object) -> Kept | None:
        """What this very decision keeps, if it was made on these groups last."""
        return self._decision[1] if self._decision and self._decision[0] is decision else None

    def length(self, field: Field) -> sympy.Expr:
        """Length of the field's axis as a sympy expression in the group widths."""
        constant, terms = self.linear(field)
        return sympy.Integer(constant) + sum((n * self.prunable[g].symbol for g, n in terms.items()), sympy.Integer(0))

    @cached_property
    def widths(self) -> Ints:
        """Full width of every prunable group."""
        return np.array([group.size for group in self.prunable], dtype=np.int64)

    def __iter__(self) -> Iterator[Group]:
        return iter((*self.prunable, *self.frozen))

    def __getitem__(self, name: str) -> tuple[Group, ...]:
        """The groups of this name, or those that a tensor, layer or block of this name has a part in; prunable ones first.

        Raises UsageError, with near names, where there is none.

        >>> import torch, graphprune
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
        >>> groups = graphprune.channel_groups(graphprune.capture(model, torch.zeros(1, 8)))
        >>> [(group.name, group.size, group.reason is None) for group in groups["2"]]
        [('0', 32, True), ('2', 4, False)]
        >>> "2" in groups, "3" in groups
        (True, False)
        """
        found = named(self, name)
        if not found:
            raise unknown(self, name)
        return found

    def __contains__(self, one: object) -> bool:
        """Whether ``groups[one]`` finds something, or this group is one of them."""
        return bool(named(self, one)) if isinstance(one, str) else any(group is one for group in self)

    def __repr__(self) -> str:
        """How many there are, and the first of them."""
        sizes = listed([f"{group.name} of {group.size} units" for group in self.prunable])
        return f"Groups: {len(self.prunable)} can be pruned{f' ({sizes})' if sizes else ''}, {len(self.frozen)} stay."

    def _repr_html_(self) -> str:
        from graphprune.html import of_groups

        return of_groups(self)

    def graph(self) -> nx.Graph:
        """The coupling graph: groups on one side, tensor axes on the other, an edge for each coupling."""
        graph = nx.Graph()
        for kind, groups in (("group", self.prunable), ("frozen", self.frozen)):
            for group in groups:
                node = f"{kind}:{group.index}"
                graph.add_node(node, kind=kind, label=group.name, width=group.size, reason=str(group.reason or ""))
                for member in group.members:
                    axis = f"{member.tensor}[{member.axis}]"
                    graph.add_node(axis, kind="axis", tensor=member.tensor, axis=member.axis)
                    graph.add_edge(node, axis, multiplicity=member.multiplicity)
        return graph


class Kept:
    """Which units stay, and what that means for every tensor."""

    def __init__(self, groups: Groups, units: Bools) -> None:
        self.groups = groups
        self.units = units

    @cached_property
    def _along(self) -> Bools:
        """Which entries of all unit vectors stay."""
        return self.units[self.groups.vectors.units]

    @cached_property
    def lengths(self) -> list[int]:
        """Length of every unit vector after pruning."""
        kept = np.concatenate([[0], np.cumsum(self._along, dtype=np.int64)])
        lengths: list[int] = np.diff(kept[self.groups.vectors.bounds]).tolist()
        return lengths

    @cached_property
    def cuts(self) -> dict[str, list[tuple[int, int]]]:
        """The axes that lose something, of each parameter and buffer by its first name: axis, index of the unit vector."""
        sizes, found = self.groups.vectors.sizes, dict[str, list[tuple[int, int]]]()
        for name, axis, vector in self.groups.axes:
            if self.lengths[vector] < sizes[vector]:
                found.setdefault(name, []).append((axis, vector))
        return found

    def vector(self, index: int) -> Bools:
        """Which entries of a unit vector stay."""
        return self._along[self.groups.vectors[index]]

    def axis(self, value: Value, axis: int) -> Bools | None:
        """Which indices of an axis stay; None when all do because nothing on it can shrink."""
        vectors = self.groups.vectors
        return next((self.vector(vectors.index(field)) for field in value.fields if vectors.axis(field) == axis), None)

    def shape(self, value: Value) -> tuple[int, ...]:
        """The tensor's shape after pruning."""
        vectors = self.groups.vectors
        shape = list(value.shape)
        for labels in value.fields:
            shape[vectors.axis(labels)] = self.lengths[vectors.index(labels)]
        return tuple(shape)

    def widths(self) -> Ints:
        """Kept units of every prunable group."""
        groups = self.groups.group_of[self.units]
        return np.bincount(groups[groups != FROZEN], minlength=len(self.groups.prunable)).astype(np.int64)


def _runs(values: npt.NDArray[np.generic], bounds: Sequence[int] = ()) -> Ints:
    """Where runs of equal values begin; a new run begins at each bound too."""
    begins = np.ones(values.size + 1, dtype=bool)
    begins[1:-1] = values[1:] != values[:-1]
    begins[list(bounds)] = True
    return np.flatnonzero(begins[:-1])


def _all_fields(trace: Trace) -> Iterable[Field]:
    """Fields of all tensors that the pruned model will hold; the scattered inside of a shuffle is not among them."""
    inside = {name for shuffle in trace.shuffles for name in (*shuffle.interior, shuffle.target)}
    for value in trace.parameters.values():
        yield from value.fields
    for node, value in trace.operands:
        yield from value.fields if node not in inside else (field for field in value.fields if len(axes_of(field)) == 1)
    yield from (factor for term in trace.macs for factor in term.factors if not isinstance(factor, int))
    yield from trace.scalars.values()
