"""The registry of criteria: functions that give every unit an importance.

A criterion is ``criterion(context, *, option=default, ...) -> values``: float64 of shape (units,), higher stays longer, NaN
where it has nothing to say. What it needs to have measured on calibration data it declares when it is registered. Third
parties register theirs with :func:`criterion` or the entry point group ``graphprune.criteria``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeAlias, get_type_hints

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter, ValidationError

from graphprune.channels.filters import Filter, taps_of
from graphprune.channels.groups import Groups, Ints
from graphprune.errors import GraphpruneError, MemoryShortError, UsageError, first_line, unknown
from graphprune.extensions import load_extensions
from graphprune.failures import memory_is_out
from graphprune.ir.program import Program
from graphprune.statistic import Place, Statistic, Tap, Totals

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ScoringContext:
    """What a criterion may read.

    filters: which parameters make and read the channels of units. measured: totals of the statistics that it declared.
    reduction: how values of a unit's members are combined (:data:`REDUCTIONS`). maker: the one layer whose weights count, where
    units are ranked by one layer alone (:meth:`of`); None for all members.
    """

    program: Program
    groups: Groups
    reduction: str = "l2"
    seed: int = 0
    filters: Sequence[Filter] = ()
    measured: Mapping[Statistic, Totals] = field(default_factory=dict)
    maker: Filter | None = None

    def of(self, maker: Filter) -> ScoringContext:
        """The context in which one layer alone makes the channels of its units; those that read them stay."""
        readers = [f for f in self.filters if not f.makes and np.isin(f.units, maker.units).any()]
        return replace(self, filters=(maker, *readers), maker=maker)

    def taps(self, place: Place) -> tuple[Tap, ...]:
        """The activations that the filters make (``produced``) or read (``consumed``)."""
        return taps_of(self.filters, place)

    def members(self) -> Iterator[tuple[torch.Tensor, list[tuple[int, Ints]]]]:
        """Every parameter with prunable units: the parameter, and for each such axis the unit of every index along it."""
        for name, axes in self.axes.items():
            if isinstance(self.program.tensors[name], torch.nn.Parameter):
                yield self.program.values[name], axes

    @cached_property
    def axes(self) -> dict[str, list[tuple[int, Ints]]]:
        """For every tensor with prunable units, each such axis and the unit of every index along it."""
        groups = self.groups
        found: dict[str, list[tuple[int, Ints]]] = {}
        for name, axis, vector in groups.axes:
            if groups.shrinking[vector] and self._counts(name, axis):
                found.setdefault(name, []).append((axis, groups.vectors.units[groups.vectors[vector]]))
        return found

    def _counts(self, tensor: str, axis: int) -> bool:
        """Whether an axis is a member: one of the maker's, if there is one. Of a computed weight, those of its parameter."""
        maker = self.maker
        return maker is None or (tensor == maker.tensor and (axis == maker.axis or bool(maker.weight)))

    def reduce(self, members: Iterable[tuple[Ints, Floats]], power: float = 1.0) -> Floats:
        """One value for each unit, from members given as (unit of each index, value of each index); shape (units,).

        Within a member, values of a unit's indices are summed and the ``power``-th root of the magnitude is taken;
        ``reduction`` then combines the members. NaN for units without a member.
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
        values = REDUCTIONS[self.reduction](owners, np.abs(totals) ** (1.0 / power), count)
        return np.where(np.bincount(owners, minlength=count) > 0, values, np.nan)

    def seen(self, place: Place, values: Floats) -> Floats:
        """Values of units, shape (units,), with NaN for units that no tap shows."""
        shown = np.zeros(values.size, dtype=bool)
        for tap in self.taps(place):
            shown[tap.units] = True
        return np.where(shown, values, np.nan)


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

Needs: TypeAlias = Callable[..., Sequence[Statistic]]
Streams: TypeAlias = Callable[..., bool]


@dataclass(frozen=True)
class Criterion:
    """A registered criterion. function: gives the values. needs: the statistics that it reads, for its options. reduction: how
    the members of a unit combine unless the user says otherwise. filters: whether it asks which parameters make channels.
    streams: whether, with some options, it reads the weights one tensor after another, so that a model need not fit into memory."""

    name: str
    function: Callable[..., Floats]
    needs: Needs
    reduction: str
    filters: bool
    streams: Streams

    def __call__(self, context: ScoringContext, **options: Any) -> Floats:
        """Importance of every unit; see the function's own text. Raises MemoryShortError where memory is out."""
        try:
            return self.function(context, **options)
        except Exception as error:
            if isinstance(error, GraphpruneError) or not memory_is_out(error):
                raise
            raise MemoryShortError(
                f"Out of memory while criterion {self.name} made its values: {first_line(error)}. Make some free, or "
                "take a criterion that keeps less."
            ) from error

    @cached_property
    def options(self) -> dict[str, Any]:
        """The options by name, with their defaults."""
        parameters = list(inspect.signature(self.function).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}

    @cached_property
    def _types(self) -> dict[str, TypeAdapter[Any]]:
        hints = get_type_hints(self.function)
        return {name: TypeAdapter(hints[name]) for name in self.options}

    def read(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """All options, those given as text converted to their types. Raises UsageError for an unknown one or a wrong value."""
        found = dict(self.options)
        for name, text in texts.items():
            if name not in found:
                raise UsageError(f"Criterion {self.name!r}: {unknown('option', name, found, 'Options')}")
            try:
                found[name] = _from_text(self._types[name], text)
            except ValidationError as error:
                raise UsageError(f"{self.name}({name}={text}) does not fit: {error.errors()[0]['msg']}.") from error
        return found


def _from_text(kind: TypeAdapter[Any], text: str) -> Any:
    """A value of a type: text as it stands, or a number among choices of numbers. Raises ValidationError."""
    try:
        return kind.validate_strings(text)
    except ValidationError as error:
        try:
            return kind.validate_json(text)
        except ValidationError:
            raise error from None


_CRITERIA: dict[str, Criterion] = {}


def _nothing(**options: Any) -> Sequence[Statistic]:
    return ()


def always(**options: Any) -> bool:
    """The answer of a criterion that streams whatever its options are."""
    return True


def never(**options: Any) -> bool:
    """The answer of one that never does."""
    return False


def criterion(
    name: str, needs: Needs = _nothing, reduction: str = "l2", filters: bool = False, streams: Streams | bool = False
) -> Callable[[Callable[..., Floats]], Callable[..., Floats]]:
    """Register a criterion under a name. needs: what to measure on calibration data, given the criterion's options. reduction:
    how the members of a unit combine by default. filters: the criterion reads ``context.filters``; those with needs always can.
    streams: whether, given its options, it takes weights one after another from ``context.members()`` or ``program.values`` and
    keeps none, so that models larger than the memory can be scored by it; True or False where options do not matter."""
    answers = (always if streams else never) if isinstance(streams, bool) else streams

    def register(function: Callable[..., Floats]) -> Callable[..., Floats]:
        if name in _CRITERIA:
            raise ValueError(f"two criteria are called {name}")
        _CRITERIA[name] = Criterion(name, function, needs, reduction, filters, answers)
        return function

    return register


def find_criterion(name: str) -> Criterion:
    """A criterion by name. Raises UsageError with the nearest name and the list when there is none."""
    names = criteria_names()
    if name not in names:
        raise UsageError(unknown("criterion", name, names, "Criteria"))
    return _CRITERIA[name]


def criteria_names() -> list[str]:
    """Names of all registered criteria, those of other packages included."""
    load_extensions("graphprune.criteria")
    return sorted(_CRITERIA)
