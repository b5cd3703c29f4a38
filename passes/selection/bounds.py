"""Targets as bounds on measures: whether widths meet them, and how much of each bound they take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from graphprune.channels.groups import Bools, Floats, Ints
from graphprune.costs.measures import Measure
from graphprune.errors import UsageError
from graphprune.passes.selection.target import Target

_AT_A_TIME = 4096  # width vectors in one step of an evaluation


@runtime_checkable
class Stepped(Protocol):
    """A measure that knows at which widths of a group it steps (``round_to=auto``): narrowing to between two gains nothing."""

    def steps(self, group: int) -> npt.ArrayLike:
        """The widest widths of each step, for a prunable group by its index."""


@dataclass(frozen=True)
class Limit:
    """A target with what it is measured by, and the most that this may be."""

    target: Target
    measure: Measure
    most: float


@dataclass(frozen=True)
class Bounds:
    """Limits that hold together. full: the width of every group.

    A measure that is the largest of several sums gives a bound for each sum that a model of full width exceeds and that is not
    part of another; any other measure gives one.
    """

    limits: tuple[Limit, ...]
    full: Ints

    def of(self, kind: str) -> Limit | None:
        """The limit of a kind of target."""
        return next((limit for limit in self.limits if limit.target.kind == kind), None)

    def but(self, kind: str, *instead: Limit) -> Bounds:
        """Bounds with other limits, or none, for a kind of target."""
        return Bounds((*(one for one in self.limits if one.target.kind != kind), *instead), self.full)

    def met(self, widths: npt.ArrayLike) -> Bools:
        """Whether widths of shape (..., groups) meet all limits; shape (...)."""
        met: Bools = np.all([limit.measure(widths) <= limit.most for limit in self.limits], axis=0)
        return met

    def amounts(self, widths: npt.ArrayLike) -> Floats:
        """What widths of shape (..., groups) amount to; shape (..., bounds)."""
        given = np.asarray(widths, dtype=np.float64)
        flat = given.reshape(-1, self.full.size)
        steps = [flat[start : start + _AT_A_TIME] for start in range(0, len(flat), _AT_A_TIME)] or [flat]
        found = np.concatenate([np.concatenate([self._of(limit, some) for limit in self.limits], axis=-1) for some in steps])
        return found.reshape(*given.shape[:-1], found.shape[-1])

    def loads(self, widths: npt.ArrayLike) -> Floats:
        """Amounts as shares of what they may be."""
        return self.amounts(widths) / np.where(self.most > 0, self.most, 1.0)

    @cached_property
    def most(self) -> Floats:
        """What the amounts may be; shape (bounds,)."""
        counts = [1 if limit.measure.rows is None else self._sums[limit.target.kind].shape[1] for limit in self.limits]
        return np.repeat([limit.most for limit in self.limits], counts)

    def _of(self, limit: Limit, widths: Floats) -> Floats:
        if limit.measure.rows is None:
            return np.asarray(limit.measure(widths))[:, None]
        return np.asarray(limit.measure.parts(widths) @ self._sums[limit.target.kind])

    @cached_property
    def _sums(self) -> Mapping[str, Floats]:
        """For measures that are the largest of sums, the terms of those that matter; shape (terms, sums)."""
        found = {}
        for limit in self.limits:
            if limit.measure.rows is not None:
                rows = np.unique(limit.measure.rows.toarray().astype(np.float64), axis=0)
                rows = rows[rows @ limit.measure.parts(self.full) > limit.most]
                found[limit.target.kind] = rows[~_within_another(rows)].T
        return found

    @cached_property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of groups on which some term depends together, ascending."""
        terms = {term for limit in self.limits for term in limit.measure.terms}
        return sorted({pair for term in terms for pair in combinations(sorted(term), 2)})


def _within_another(rows: Floats) -> Bools:
    """Which rows of zeros and ones (all different) have their ones among those of another row."""
    missing = rows @ (1 - rows).T
    np.fill_diagonal(missing, 1)
    return np.asarray((missing == 0).any(axis=1))


def make_bounds(targets: Sequence[Target], measures: Mapping[str, Measure], full: Ints) -> Bounds:
    """The bounds that targets set on a model whose groups have these full widths.

    Raises UsageError for a target on something that nothing measures.
    """
    unknown = next((target for target in targets if target.kind not in measures), None)
    if unknown is not None:
        raise UsageError(
            f"Target {unknown} needs a latency table of this model. Measure one with `graphprune profile`, and give it as "
            "latency= (or --latency)."
        )
    limits = [Limit(target, measures[target.kind], target.limit(float(measures[target.kind](full)))) for target in targets]
    return Bounds(tuple(limits), full)
