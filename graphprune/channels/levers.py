"""Levers: widths that only move together, as those of all layers do whose width is one number of a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from graphprune.channels.groups import Ints

Numbers: TypeAlias = Mapping[tuple[str | int, ...], int]  # by their places in a config


@dataclass(frozen=True)
class Lever:
    """Groups that have the same share of their units at any time.

    groups: their indices; without any, the numbers stay as they are. steps: as many are the full width. numbers: what states their
    widths, at full width; they have the same share, too.

    >>> Lever((0, 2), 4, {("width",): 16}).widths(3, np.array([8, 5, 12]))
    array([6, 9])
    >>> Lever((0, 2), 4, {("width",): 16}).at(3)
    {('width',): 12}
    """

    groups: tuple[int, ...]
    steps: int
    numbers: Numbers

    def at(self, step: int) -> Numbers:
        """The numbers at a step."""
        return {place: value * step // self.steps for place, value in self.numbers.items()}

    def widths(self, step: int, full: Ints) -> Ints:
        """The widths of its groups at a step. full: those of all groups."""
        return full[list(self.groups)] * step // self.steps

    def step(self, widths: Ints, full: Ints) -> int:
        """The first step at which no group of it is narrower than in these widths of all groups."""
        mine = list(self.groups)
        return int(np.max(-(-widths[mine] * self.steps // full[mine]), initial=0)) or self.steps

    def allowed(self, widths: Sequence[Ints], full: Ints) -> Ints:
        """The steps, ascending, at which each of its groups has a width that it may have. widths: for all groups, those."""
        steps = np.arange(1, self.steps + 1)
        fine = np.ones(self.steps, dtype=bool)
        for group in self.groups:
            fine &= np.isin(full[group] * steps // self.steps, widths[group])
        return steps[fine]


@dataclass(frozen=True)
class Levers:
    """Levers of which none moves a group of another. fits: whether there is a model with such numbers of all of them together."""

    each: tuple[Lever, ...]
    fits: Callable[[Numbers], bool]

    def at(self, steps: Sequence[int]) -> Numbers:
        """The numbers at a step of each."""
        return {place: value for lever, step in zip(self.each, steps, strict=True) for place, value in lever.at(step).items()}

    def steps(self, widths: Ints, full: Ints) -> list[int]:
        """The first step of each at which nothing is narrower than in these widths of all groups."""
        return [lever.step(widths, full) for lever in self.each]
