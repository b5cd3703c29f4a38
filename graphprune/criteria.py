"""The registry of criteria: functions that give every unit an importance.

A criterion is ``criterion(context) -> values``: float64 of shape (units,), higher stays longer, NaN where it has
nothing to say. Third parties register theirs with :func:`criterion` or the entry point group ``graphprune.criteria``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from graphprune.errors import UsageError
from graphprune.extensions import load_extensions
from graphprune.groups import FROZEN, Groups, Ints
from graphprune.labels import axes_of
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
        parameters = dict(self.program.module.named_parameters())
        for name, value in self.groups.trace.parameters.items():
            if name in parameters:
                axes = [(axes_of(field)[0], self.groups.units_along(field)[1]) for field in value.fields]
                prunable = [(axis, units) for axis, units in axes if (self.groups.group_of[units] != FROZEN).any()]
                if prunable:
                    yield parameters[name], prunable

    def reduce(self, values: Iterator[tuple[Ints, Floats]]) -> Floats:
        """Combine members: pairs of (unit ids, value of each), each unit at most once in a pair. Shape (units,)."""
        reducer = REDUCTIONS[self.reduction](self.groups.unit_count)
        for units, value in values:
            reducer.add(units, value)
        return reducer.result()


class _Reducer:
    """Accumulates values of units over members."""

    power = 1.0

    def __init__(self, count: int) -> None:
        self.total = np.zeros(count)
        self.seen = np.zeros(count, dtype=np.int64)

    def add(self, units: Ints, value: Floats) -> None:
        """One member's values; each unit occurs once."""
        self.total[units] += value**self.power
        self.seen[units] += 1

    def result(self) -> Floats:
        """The combined values; NaN for units without a member."""
        return np.where(self.seen > 0, self.total, np.nan)


class _Mean(_Reducer):
    def result(self) -> Floats:
        with np.errstate(invalid="ignore"):
            mean: Floats = self.total / self.seen
        return mean


class _Max(_Reducer):
    def add(self, units: Ints, value: Floats) -> None:
        first = self.seen[units] == 0
        self.total[units] = np.where(first, value, np.maximum(self.total[units], value))
        self.seen[units] += 1


class _Euclidean(_Reducer):
    power = 2.0

    def result(self) -> Floats:
        return np.sqrt(super().result())


REDUCTIONS: Mapping[str, type[_Reducer]] = {"sum": _Reducer, "mean": _Mean, "max": _Max, "l2": _Euclidean}

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
