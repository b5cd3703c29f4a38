"""Steps of one group, or of two, on the true measures: down until all bounds are met, and up as far as they allow.

A choice is an index into the candidate widths of every group (:class:`~graphprune.passes.selection.solvers.problem.Choices`).
"""

from __future__ import annotations

import numpy as np

from graphprune.channels.groups import Bools, Floats, Ints
from graphprune.passes.selection.bounds import Bounds
from graphprune.passes.selection.solvers.problem import Choices

_SWAPS = 4096  # exchanges that are tried for one that fits, the most valuable first
_EXCHANGES = 500  # exchanges that are made at most
_EQUAL = 1e-12  # relative difference of sums that rounding may make


def polished(choices: Choices, bounds: Bounds, items: Ints) -> Ints:
    """A choice near the one given that meets the bounds, in which no group is narrower than a width that costs less.

    Neither a wider one of any group nor a step down of one for a more valuable step up of another improves it. Some choice must
    meet the bounds.
    """
    items = grown(choices, bounds, shrunk(choices, bounds, items))
    for _ in range(_EXCHANGES):
        better = _exchanged(choices, bounds, items)
        if better is None:
            break
        items = grown(choices, bounds, better)
    return widened(choices, bounds, items)


# ------------------------------------------------------------------------------------------------------------- down


def shrunk(choices: Choices, bounds: Bounds, items: Ints) -> Ints:
    """Take away the step that loses the least value for what it saves of the bounds that are exceeded, until all are met."""
    descent = _Descent(choices, bounds, items)
    while not bounds.met(choices.at(descent.items)):
        descent.step()
    return descent.items


class _Descent:
    """The state of a descent. below: for every group the candidate that it would step down to, -1 for none. inert: groups that no
    width of theirs saves anything as long as the same bounds are exceeded."""

    def __init__(self, choices: Choices, bounds: Bounds, items: Ints) -> None:
        self.choices = choices
        self.bounds = bounds
        self.items = items.copy()
        self._below = items - 1
        self._inert = np.zeros(items.size, dtype=bool)
        self._exceeded = np.zeros(0, dtype=bool)

    def step(self) -> None:
        """One step down of one group. There must be one."""
        loads = self.bounds.loads(self.choices.at(self.items))
        exceeded: Bools = loads >= min(1.0, loads.max(initial=0.0))
        if not np.array_equal(exceeded, self._exceeded):
            self._exceeded, self._inert = exceeded, np.zeros_like(self._inert)
        groups = np.flatnonzero((self._below >= 0) & ~self._inert)
        saved = self._saved(loads, groups, self._below[groups])
        for place in np.flatnonzero(saved <= 0).tolist():
            saved[place] = self._look_further(loads, int(groups[place]))
        groups, saved = groups[saved > 0], saved[saved > 0]
        if not groups.size:  # only several groups together save something: the cheapest step, whatever it saves
            groups, saved = np.flatnonzero(self.items > 0), np.ones(int((self.items > 0).sum()))
            self._below[groups] = self.items[groups] - 1
        values = self.choices.values
        lost = np.array([values[g][self.items[g]] - values[g][self._below[g]] for g in groups.tolist()])
        chosen = groups[np.lexsort((-saved, lost / saved))[0]]
        self.items[chosen] = self._below[chosen]
        self._below[chosen] -= 1

    def _saved(self, loads: Floats, groups: Ints, items: Ints) -> Floats:
        rows = _with(self.choices, self.items, groups, items)
        result: Floats = (loads - self.bounds.loads(rows))[:, self._exceeded].sum(axis=1)
        return result

    def _look_further(self, loads: Floats, group: int) -> float:
        """On a level stretch of a staircase: what the next candidate that saves something saves; 0 if none does."""
        items = np.arange(int(self.items[group]) - 1, -1, -1)
        saved = self._saved(loads, np.full(items.size, group), items)
        if not (saved > 0).any():
            self._inert[group] = True
            return 0.0
        first = int(np.argmax(saved > 0))
        self._below[group] = items[first]
        return float(saved[first])


# --------------------------------------------------------------------------------------------------------------- up


def grown(choices: Choices, bounds: Bounds, items: Ints) -> Ints:
    """Add the most valuable step of one group that the bounds allow, until none does."""
    items = items.copy()
    while True:
        groups = np.flatnonzero(items < top(choices))
        gains = _gains(choices, items, groups)
        groups, gains = groups[gains >= 0], gains[gains >= 0]
        fits = bounds.met(choices.at(_stepped(items, groups)))
        if not fits.any():
            return items
        items[groups[fits][np.argmax(gains[fits])]] += 1


def widened(choices: Choices, bounds: Bounds, items: Ints) -> Ints:
    """Replace each width by the most valuable wider one that fits and is worth more or costs less, until there is none.

    With costs that only rise there is none once no single step fits. A staircase may have one further on; and a width that costs
    more than a wider one is not to be kept at all: narrowing must never make slower.
    """
    items, tops = items.copy(), top(choices)
    changed = True
    while changed:
        changed = False
        for group in np.flatnonzero(items < tops).tolist():
            wider = np.arange(int(items[group]) + 1, int(tops[group]) + 1)
            rows = _with(choices, items, np.full(wider.size, group), wider)
            less = (bounds.loads(rows) < bounds.loads(choices.at(items)) * (1 - _EQUAL)).any(axis=1)
            values = choices.values[group]
            better = wider[bounds.met(rows) & (less | (values[wider] > values[items[group]]))]
            if better.size:
                items[group] = better[np.argmax(values[better])]
                changed = True
    return items


def _exchanged(choices: Choices, bounds: Bounds, items: Ints) -> Ints | None:
    """The most valuable step up of one group that a step down of another makes room for; None if none gains anything."""
    up, down = np.flatnonzero(items < top(choices)), np.flatnonzero(items > 0)
    gains = _gains(choices, items, up)[:, None] - _gains(choices, items - 1, down)[None]
    scale = max((float(np.abs(value).max()) for value in choices.values), default=0.0)
    worth = np.argwhere((gains > _EQUAL * scale) & (up[:, None] != down[None]))
    order = np.argsort(-gains[tuple(worth.T)], kind="stable")[:_SWAPS]
    places = worth[order]
    trials = np.tile(items, (len(places), 1))
    at = np.arange(len(places))
    trials[at, up[places[:, 0]]] += 1
    trials[at, down[places[:, 1]]] -= 1
    fits = np.flatnonzero(bounds.met(choices.at(trials)))
    return trials[fits[0]] if fits.size else None


def top(choices: Choices) -> Ints:
    """The choice of full widths."""
    return np.array([widths.size - 1 for widths in choices.widths], dtype=np.int64)


def _gains(choices: Choices, items: Ints, groups: Ints) -> Floats:
    """What one step up of each of these groups is worth."""
    values = choices.values
    return np.array([values[g][items[g] + 1] - values[g][items[g]] for g in groups.tolist()], dtype=np.float64)


def _stepped(items: Ints, groups: Ints) -> Ints:
    rows = np.tile(items, (groups.size, 1))
    rows[np.arange(groups.size), groups] += 1
    return rows


def _with(choices: Choices, items: Ints, groups: Ints, instead: Ints) -> Ints:
    """Widths of a choice with one group changed; a row for each group and its other candidate."""
    rows = np.tile(choices.at(items), (groups.size, 1))
    rows[np.arange(groups.size), groups] = [choices.widths[g][i] for g, i in zip(groups.tolist(), instead.tolist(), strict=True)]
    return rows
