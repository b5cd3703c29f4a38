"""Widths under levers: every group on one has the width of its step, and what is on none stays whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Final

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.channels.levers import Levers
from graphprune.errors import UsageError

_WIDTHS: Final = ("config", "any")
_NEAR: Final = 64  # steps up of one lever that are tried for numbers that go together


def is_stating(widths: str) -> bool:
    """Whether widths are to be such as a config can state. Raises UsageError for what says neither that nor the contrary."""
    if widths not in _WIDTHS:
        raise UsageError(f"widths={widths!r} is not known; choose from {', '.join(_WIDTHS)}.")
    return widths == "config"


class Lattice:
    """The widths that levers allow.

    widths: those that each group may have. full: its full width.
    """

    def __init__(self, levers: Levers, widths: Sequence[Ints], full: Ints) -> None:
        self._levers = levers
        self._widths = widths
        self._full = full

    def rounded(self, widths: Ints) -> Ints:
        """Wider widths that are allowed, as near as one lever more gets."""
        places = [
            int(np.searchsorted(allowed, step))
            for allowed, step in zip(self._allowed, self._levers.steps(widths, self._full), strict=True)
        ]
        return self._at(next((near for near in self._raised(places) if self._fits(near)), self._top))

    def check(self, widths: Ints) -> None:
        """Raise UsageError where there is no model of these widths, as where some are given that do not go together."""
        numbers = self._levers.at(self._levers.steps(widths, self._full))
        if not self._levers.fits(numbers):
            stated = ", ".join(f"{'.'.join(map(str, place))} {value}" for place, value in numbers.items())
            raise UsageError(
                f"No model has a config of the widths that keep leaves: {stated}. Keep another amount, give another target, or "
                "take any widths (--widths any), with which no config makes the slim model."
            )

    def grown(self, widths: Ints, met: Callable[[Ints], bool]) -> Ints:
        """Widths as near to the bounds as the levers get from these, which meet them: a coarse lever leaves room for a fine one.

        The lever that stands lowest is raised first, and none above the highest as long as others are below it.
        """
        steps = self._levers.steps(widths, self._full)
        places = [int(np.searchsorted(allowed, step)) for allowed, step in zip(self._allowed, steps, strict=True)]
        for ceiling in (max((self._share(i, place) for i, place in enumerate(places) if self._top[i]), default=1.0), 1.0):
            for index in sorted(range(len(places)), key=lambda index: self._share(index, places[index])):
                places[index] = self._highest(places, index, ceiling, met)
        return self._at(places)

    def _highest(self, places: Sequence[int], index: int, ceiling: float, met: Callable[[Ints], bool]) -> int:
        """The highest place of a lever at which the bounds are met: costs only rise with each; and the numbers go together."""

        def at(place: int) -> list[int]:
            return [*places[:index], place, *places[index + 1 :]]

        allowed = self._allowed[index]
        low, high = places[index], int(np.searchsorted(allowed, ceiling * self._levers.each[index].steps, side="right")) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if met(self._at(at(middle))) else (low, middle - 1)
        fine = (place for place in range(low, max(places[index], low - _NEAR), -1) if self._fits(at(place)))
        return next(fine, places[index])

    def _raised(self, places: list[int]) -> Iterator[list[int]]:
        """These places, and those with one lever at a higher one: the least share of its full width more first."""
        yield places
        higher = [
            (self._share(index, up) - self._share(index, place), index, up)
            for index, place in enumerate(places)
            for up in range(place + 1, min(place + _NEAR, self._top[index]) + 1)
        ]
        for _, index, up in sorted(higher):
            yield [*places[:index], up, *places[index + 1 :]]

    def _fits(self, places: Sequence[int]) -> bool:
        return self._levers.fits(self._levers.at(self._steps(places)))

    def _share(self, index: int, place: int) -> float:
        return float(self._allowed[index][place]) / self._levers.each[index].steps

    def _steps(self, places: Sequence[int]) -> list[int]:
        return [int(allowed[place]) for allowed, place in zip(self._allowed, places, strict=True)]

    def _at(self, places: Sequence[int]) -> Ints:
        widths = self._full.copy()
        for lever, step in zip(self._levers.each, self._steps(places), strict=True):
            widths[list(lever.groups)] = lever.widths(step, self._full)
        return widths

    @cached_property
    def _allowed(self) -> list[Ints]:
        return [lever.allowed(self._widths, self._full) for lever in self._levers.each]

    @cached_property
    def _top(self) -> list[int]:
        return [allowed.size - 1 for allowed in self._allowed]
