"""Units and groups: what the ties and freezes of an abstract execution amount to.

**Unit**: one connected component of atoms, the smallest thing that can be removed. **Group**: all units that touch the
same tensor axes equally often; every axis length is then an integer combination of group widths. One group has one
width symbol, and is ranked and budgeted as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import networkx as nx
import numpy as np
import numpy.typing as npt
import sympy
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from graphprune.labels import Field, Reason, Value, axes_of
from graphprune.propagate import Trace

FROZEN = -1  # in place of a group index: the unit must stay
FREE, ORPHAN = -1, -2  # in place of a freeze index: nothing freezes the unit; it touches no parameter (padding, constants)
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Member:
    """One tensor axis that a group's units have slices of; ``multiplicity`` indices for each unit."""

    tensor: str
    axis: int
    multiplicity: int


@dataclass(frozen=True)
class Group:
    """Units that are ranked and budgeted together, or stay together for a reason.

    units: unit ids, in order of their first atom. members: slices of parameters and buffers. reason: why it is
    frozen, or None. statistics: a normalisation or mean is taken over its units (over the kept ones, once pruned).
    """

    index: int
    name: str
    units: Ints
    members: tuple[Member, ...]
    reason: Reason | None = None
    statistics: Reason | None = None

    @property
    def size(self) -> int:
        """Number of units (the group's full width)."""
        return int(self.units.size)

    @property
    def symbol(self) -> sympy.Symbol:
        """The width symbol of the group in symbolic sizes and costs."""
        return sympy.Symbol(f"w{self.index}", integer=True, positive=True)


class Groups:
    """The result of the channel analysis (immutable once built).

    trace: the abstract execution. unit_of: unit id of every atom. group_of: group index of every unit, FROZEN for
    units that must stay. prunable: groups by index. frozen: groups that must stay, with reasons.
    """

    def __init__(self, trace: Trace, exclude: Sequence[tuple[str, Reason]] = ()) -> None:
        self.trace = trace
        self._exclude(exclude)
        self.unit_of, self.unit_count = _rectangular_components(trace)
        self._decision: tuple[object, Kept] | None = None
        self._along: dict[int, tuple[Field, int, Ints]] = {}
        self._linear: dict[int, tuple[Field, int, Mapping[int, int]]] = {}
        reasons = self._unit_reasons()
        signature = self._signatures()
        self.group_of = np.full(self.unit_count, FROZEN, dtype=np.int64)
        self.prunable, self.frozen = self._form_groups(signature, reasons)

    # -- building ------------------------------------------------------------------------------------------------

    def _exclude(self, exclude: Sequence[tuple[str, Reason]]) -> None:
        for name, reason in exclude:
            for field in self.trace.parameters[name].fields:
                self.trace.space.freeze(field, reason)

    def _unit_reasons(self) -> Ints:
        """Index of the first freeze of each unit, FREE for free ones, ORPHAN for those without a slice of any parameter."""
        first = np.full(self.unit_count, FREE, dtype=np.int64)
        owned = np.zeros(self.unit_count, dtype=bool)
        for value in self.trace.parameters.values():
            for field in value.fields:
                owned[self.unit_of[field.ravel()]] = True
        first[~owned] = ORPHAN
        for index in range(len(self.trace.space.freezes) - 1, -1, -1):
            atoms, _ = self.trace.space.freezes[index]
            first[self.unit_of[atoms]] = index
        return first

    def _signatures(self) -> npt.NDArray[np.uint64]:
        """A 64-bit hash of how often each unit occurs on each tensor axis: the sum of the axes' random keys."""
        axes = [self.units_along(field)[1] for field in _distinct_fields(self.trace)]
        keys = np.random.default_rng(0).integers(0, 2**64, size=len(axes), dtype=np.uint64)
        signature = np.zeros(self.unit_count, dtype=np.uint64)
        if axes:
            np.add.at(signature, np.concatenate(axes), np.repeat(keys, [units.size for units in axes]))
        return signature

    def _form_groups(self, signature: npt.NDArray[np.uint64], reasons: Ints) -> tuple[tuple[Group, ...], tuple[Group, ...]]:
        keys = np.rec.fromarrays([signature, reasons])
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        by_key = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        slices = self._slices(first)
        statistics = self._statistics()
        prunable: list[Group] = []
        frozen: list[Group] = []
        names: set[str] = set()
        for key in np.argsort(first, kind="stable").tolist():
            units, unit = by_key[key], int(first[key])
            reason = int(reasons[unit])
            if reason == ORPHAN:
                continue
            why = None if reason == FREE else self.trace.space.freezes[reason][1]
            members = slices.get(unit, ())
            target = prunable if why is None else frozen
            name = _name(members, names if why is None else set())
            target.append(Group(len(target), name, units, members, why, statistics.get(unit)))
            if why is None:
                self.group_of[units] = len(prunable) - 1
        return tuple(prunable), tuple(frozen)

    def _slices(self, representatives: Ints) -> Mapping[int, tuple[Member, ...]]:
        """Slices of parameters and buffers that one unit of each group has."""
        wanted = np.zeros(self.unit_count, dtype=bool)
        wanted[representatives] = True
        axes = [(name, axes_of(field)[0], field) for name, value in self.trace.parameters.items() for field in value.fields]
        if not axes:
            return {}
        units = self.unit_of[np.concatenate([field.ravel() for _, _, field in axes])]
        which = np.repeat(np.arange(len(axes)), [field.size for _, _, field in axes])
        chosen = wanted[units]
        pairs, counts = np.unique(units[chosen] * len(axes) + which[chosen], return_counts=True)
        found: dict[int, list[Member]] = {}
        for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True):
            unit, axis = divmod(pair, len(axes))
            found.setdefault(unit, []).append(Member(axes[axis][0], axes[axis][1], count))
        return {unit: tuple(slices) for unit, slices in found.items()}

    def _statistics(self) -> Mapping[int, Reason]:
        return {
            unit: reason
            for atoms, reason in reversed(self.trace.space.statistics)
            for unit in np.unique(self.unit_of[atoms]).tolist()
        }

    # -- sizes -----------------------------------------------------------------------------------------------------

    def units_along(self, field: Field) -> tuple[int, Ints]:
        """The one axis along which a (rectangular) field's units vary, and the units along it."""
        known = self._along.get(id(field))
        if known is None:
            found = _shrinking_axis(self.unit_of[field])
            assert found is not None, "fields are rectangular once the groups are built"
            known = self._along[id(field)] = (field, *found)
        return known[1], known[2]

    def linear(self, field: Field) -> tuple[int, Mapping[int, int]]:
        """Length of the field's axis as ``constant + sum(coefficient * width)``: the constant, and coefficients by group."""
        if id(field) not in self._linear:
            self._linear.update(self._lengths_of([field] if self._linear else [field, *_distinct_fields(self.trace)]))
        _, constant, terms = self._linear[id(field)]
        return constant, terms

    def _lengths_of(self, fields: Sequence[Field]) -> dict[int, tuple[Field, int, Mapping[int, int]]]:
        """The affine lengths of many fields in one pass: a histogram of groups for each."""
        vectors = [self.units_along(field)[1] for field in fields]
        columns = self.group_of[np.concatenate(vectors)] + 1  # FROZEN counts in column 0
        rows = np.repeat(np.arange(len(fields)), [vector.size for vector in vectors])
        shape = (len(fields), len(self.prunable) + 1)
        table = coo_matrix((np.ones(rows.size, dtype=np.int64), (rows, columns)), shape=shape).tocsr()
        table.sort_indices()
        bounds, groups, counts = table.indptr.tolist(), table.indices.tolist(), table.data.tolist()
        found: dict[int, tuple[Field, int, Mapping[int, int]]] = {}
        for row, field in enumerate(fields):
            pairs = list(zip(groups[bounds[row] : bounds[row + 1]], counts[bounds[row] : bounds[row + 1]], strict=True))
            constant = pairs.pop(0)[1] if pairs and pairs[0][0] == 0 else 0
            found[id(field)] = (field, constant, {g - 1: count // self.prunable[g - 1].size for g, count in pairs})
        return found

    def remember(self, decision: object, kept: Kept) -> None:
        """Note what a decision made on these groups keeps, so that carrying it out need not derive it again."""
        self._decision = (decision, kept)

    def remembered(self, decision: object) -> Kept | None:
        """What this very decision keeps, if it was made on these groups last."""
        return self._decision[1] if self._decision and self._decision[0] is decision else None

    def length(self, field: Field) -> sympy.Expr:
        """Length of the field's axis as a sympy expression in the group widths."""
        return self.expression(*self.linear(field))

    def expression(self, constant: int, terms: Mapping[int, int]) -> sympy.Expr:
        """``constant + sum(coefficient * width)`` in the width symbols; terms: coefficients by group."""
        return sympy.Integer(constant) + sum((n * self.prunable[g].symbol for g, n in terms.items()), sympy.Integer(0))

    @cached_property
    def widths(self) -> Ints:
        """Full width of every prunable group."""
        return np.array([group.size for group in self.prunable], dtype=np.int64)

    def named(self, pattern: str) -> list[Group]:
        """Prunable and frozen groups with a member whose tensor or module name contains ``pattern``."""
        return [g for g in (*self.prunable, *self.frozen) if any(pattern in m.tensor for m in g.members)]

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
        self._cache: dict[int, tuple[Field, int, Bools]] = {}

    def mask(self, field: Field) -> tuple[int, Bools]:
        """The axis that shrinks and which of its indices stay."""
        known = self._cache.get(id(field))
        if known is None:
            axis, units = self.groups.units_along(field)
            known = self._cache[id(field)] = (field, axis, self.units[units])
        return known[1], known[2]

    def axis(self, value: Value, axis: int) -> Bools | None:
        """Which indices of an axis stay; None when all do because nothing on it can shrink."""
        for field in value.fields:
            varied, mask = self.mask(field)
            if varied == axis:
                return mask
        return None

    def shape(self, value: Value) -> tuple[int, ...]:
        """The tensor's shape after pruning."""
        shape = list(value.shape)
        for field in value.fields:
            axis, mask = self.mask(field)
            shape[axis] = int(mask.sum())
        return tuple(shape)

    def widths(self) -> Ints:
        """Kept units of every prunable group."""
        groups = self.groups.group_of[self.units]
        return np.bincount(groups[groups != FROZEN], minlength=len(self.groups.prunable)).astype(np.int64)


def _name(members: Sequence[Member], taken: set[str]) -> str:
    """A group is named after the first module that uses it (the one that makes it), numbered where that is taken."""
    path, _, leaf = members[0].tensor.rpartition(".") if members else ("", "", "(none)")
    name = base = (
        path if path and leaf in ("weight", "bias", "running_mean", "running_var") else ".".join(filter(None, (path, leaf)))
    )
    number = 1
    while name in taken:
        number += 1
        name = f"{base}#{number}"
    taken.add(name)
    return name


def _shrinking_axis(units: Ints) -> tuple[int, Ints] | None:
    """The one axis along which units vary, and the units along it; None when they vary along several."""
    axes = axes_of(units)
    for axis in axes:
        first = units
        for other in axes:
            if other != axis:
                first = first.take([0], other)
        if len(axes) == 1 or (units == first).all():
            return axis, first.reshape(-1)
    return None


def _all_fields(trace: Trace) -> Iterable[Field]:
    """Fields of all tensors that the pruned model will hold; the scattered inside of a shuffle is not among them."""
    inside = {name for shuffle in trace.shuffles for name in (*shuffle.interior, shuffle.target)}
    for value in trace.parameters.values():
        yield from value.fields
    for node, value in trace.operands:
        yield from (field for field in value.fields if node not in inside or len(axes_of(field)) == 1)
    yield from (factor for term in trace.macs for factor in term.factors if not isinstance(factor, int))
    yield from trace.scalars.values()


def _components(trace: Trace) -> tuple[Ints, int]:
    space = trace.space
    if not space.ties:
        return np.arange(space.size, dtype=np.int64), space.size
    left = np.concatenate([pair[0] for pair in space.ties])
    right = np.concatenate([pair[1] for pair in space.ties])
    edges = coo_matrix((np.ones(left.size, dtype=np.int8), (left, right)), shape=(space.size, space.size))
    count, labels = connected_components(edges, directed=False)
    # Number components by their first atom, so that ids do not depend on the solver.
    _, first = np.unique(labels, return_index=True)
    order = np.empty(count, dtype=np.int64)
    order[np.argsort(first, kind="stable")] = np.arange(count)
    return order[labels], int(count)


def _rectangular_components(trace: Trace) -> tuple[Ints, int]:
    """Components, after tying what must be tied for every tensor to stay rectangular whatever is removed."""
    wide = [field for field in _distinct_fields(trace) if len(axes_of(field)) > 1]
    while True:
        units, count = _components(trace)
        open_fields = [field for field in wide if _shrinking_axis(units[field]) is None]
        if not open_fields:
            return units, count
        for field in open_fields:
            axes = axes_of(field)
            # Nothing asked for one axis on its own: the innermost shrinks, the outer ones keep their structure.
            first = field
            for axis in axes[:-1]:
                first = first.take([0], axis)
            trace.space.tie(field, first)


def _distinct_fields(trace: Trace) -> list[Field]:
    """Every distinct field of the trace."""
    return list({id(field): field for field in _all_fields(trace)}.values())
