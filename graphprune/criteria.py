"""The registry of criteria: functions that give every unit an importance.

A criterion is ``criterion(context) -> values``: float64 of shape (units,), higher stays longer, NaN where it has
nothing to say. Third parties register theirs with :func:`criterion` or the entry point group ``graphprune.criteria``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from graphprune.errors import UsageError
from graphprune.extensions import load_extensions
from graphprune.groups import Groups, Ints
from graphprune.program import Program

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoringContext:
    """What a criterion may read. reduction: how values of a unit's members are combined (:data:`REDUCTIONS`)."""

    program: Program
    groups: Groups
    reduction: str = "l2"
    seed: int = 0

    def members(self) -> Iterator[tuple[torch.nn.Parameter, list[tuple[int, Ints]]]]:
        """Every parameter with prunable units: the parameter, and for each such axis the unit of every index along it."""
        tensors, groups = self.program.tensors, self.groups
        found: dict[str, list[tuple[int, Ints]]] = {}
        for name, axis, vector in groups.axes:
            if groups.shrinking[vector]:
                found.setdefault(name, []).append((axis, groups.vectors.units[groups.vectors[vector]]))
        for name, axes in found.items():
            parameter = tensors[name]
            if isinstance(parameter, torch.nn.Parameter):
                yield parameter, axes

    def reduce(self, members: Iterable[tuple[Ints, Floats]], power: float = 1.0) -> Floats:
        """One value for each unit, from members given as (unit of each index, value of each index); shape (units,).

        Within a member, values of a unit's indices are summed and the ``power``-th root is taken; ``reduction`` then
        combines the members. NaN for units without a member.
        """
        entries = [(units, values) for units, values in members if units.size]
        if not entries:
            return np.full(self.groups.unit_count, np.nan)
        count = self.groups.unit_count
        owners = np.concatenate([units for units, _ in entries])
        totals: Floats = np.concatenate([values for _, values in entries], dtype=np.float64)
        sizes = [units.size for units, _ in entries]
        ascending = owners[1:] > owners[:-1]
        ascending[np.cumsum(sizes[:-1], dtype=np.int64) - 1] = True
        if not ascending.all():  # some member has several indices of one unit, or its units out of order
            which = np.repeat(np.arange(len(entries)), sizes)
            _, index, place = np.unique(which * count + owners, return_index=True, return_inverse=True)
            owners, totals = owners[index], np.bincount(place, weights=totals).astype(np.float64)
        values = REDUCTIONS[self.reduction](owners, totals ** (1.0 / power), count)
        return np.where(np.bincount(owners, minlength=count) > 0, values, np.nan)


def _sum(owners: Ints, values: Floats, count: int) -> Floats:
    return np.bincount(owners, weights=values, minlength=count).astype(np.float64)


def _mean(owners: Ints, values: Floats, count: int) -> Floats:
    return _sum(owners, values, count) / np.maximum(1, np.bincount(owners, minlength=count))


def _max(owners: Ints, values: Floats, count: int) -> Floats:
    largest = np.full(count, -np.inf)
    np.maximum.at(largest, owners, values)
    return largest


def _euclidean(owners: Ints, values: Floats, count: int) -> Floats:
    return np.sqrt(_sum(owners, values**2, count))


#: How the members of a unit combine: functions of (unit of each value, values, number of units).
REDUCTIONS: Mapping[str, Callable[[Ints, Floats, int], Floats]] = {"sum": _sum, "mean": _mean, "max": _max, "l2": _euclidean}

Criterion: TypeAlias = Callable[[ScoringContext], Floats]

_CRITERIA: dict[str, Criterion] = {}


def criterion(name: str) -> Callable[[Criterion], Criterion]:
    """Register a criterion under a name."""

    def register(function: Criterion) -> Criterion:
        if name in _CRITERIA:
            raise ValueError(f"two criteria are called {name}")
        _CRITERIA[name] = function
        return function

    return register


def find_criterion(name: str) -> Criterion:
    """A criterion by name. Raises UsageError with the nearest names when there is none."""
    if name not in criteria_names():
        near = get_close_matches(name, _CRITERIA) or sorted(_CRITERIA)
        raise UsageError(f"There is no criterion {name!r}; did you mean {' or '.join(near)}?")
    return _CRITERIA[name]


def criteria_names() -> list[str]:
    """Names of all registered criteria, those of other packages included."""
    load_extensions("graphprune.criteria")
    return sorted(_CRITERIA)
