"""Targets on latency are met as measured: what is chosen by predictions is timed, and the budget is put right until it fits.

The latency of layers is not additive, and a fit is not exact. So the budget that the predictions get is moved by the secant rule
until the measured latency of the slim model is the target's (SP-LAMP, section on stages; there with a table's sum calibrated to
the whole model once for each stage).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from graphprune.errors import TargetError
from graphprune.groups import Ints
from graphprune.latency.source import Measured
from graphprune.passes.selection.target import Target

_MEASUREMENTS: Final = 6
_CLOSE: Final = 0.01  # of the target: a measured latency this near is the target's
_STEEPEST: Final = 3.0  # a budget moves by this factor at most, in one try
_LESS: Final = 1e-6  # share by which a budget is lowered so that it no longer allows what it did


@dataclass(frozen=True)
class Choice:
    """Widths that a pass chose. notes: for the record. measured: their latency, where it was."""

    widths: Ints
    notes: dict[str, str] = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True)
class _Try:
    spent: float
    choice: Choice
    reached: float  # the measured latency as a share of the target's

    @property
    def fits(self) -> bool:
        return self.reached <= 1 + _CLOSE


def settled(
    target: Target,
    budget: float,
    choose: Callable[[float], Choice],
    spent: Callable[[Ints], float],
    measure: Callable[[Ints], Measured],
) -> Choice:
    """The choice whose measured latency is within 1 % of the target, or else the nearest one below it.

    budget: to begin with, such as the predicted milliseconds that the target amounts to. choose: the best choice for a budget;
    raises TargetError where none is so low. spent: what widths take of a budget. Raises TargetError where all that were tried are
    slower.
    """
    tries: list[_Try] = []
    while len(tries) < _MEASUREMENTS:
        try:
            chosen = choose(budget)
        except TargetError:
            if not tries:
                raise
            break
        known = next((one for one in tries if (one.choice.widths == chosen.widths).all()), None)
        if known is None:
            measured = measure(chosen.widths)
            reached = measured.slim / target.limit(measured.whole)
            tries.append(_Try(spent(chosen.widths), Choice(chosen.widths, chosen.notes, measured), reached))
            if abs(reached - 1) <= _CLOSE:
                break
            budget = _next(tries)
        elif known.fits or budget < known.spent:  # nothing lies between what fits and what does not
            break
        else:
            budget = known.spent * (1 - _LESS)
    return _best(tries, target)


def _next(tries: list[_Try]) -> float:
    """The next budget: by the line through the two tries nearest to the target, or in proportion."""
    near = sorted(tries, key=lambda one: abs(one.reached - 1))[:2]
    best = near[0]
    if len(near) == 2 and near[0].reached != near[1].reached:
        slope = (near[1].spent - near[0].spent) / (near[1].reached - near[0].reached)
        if slope > 0:
            found = best.spent + slope * (1 - best.reached)
            return min(best.spent * _STEEPEST, max(best.spent / _STEEPEST, found))
    return best.spent / best.reached


def _best(tries: list[_Try], target: Target) -> Choice:
    fitting = [one for one in tries if one.fits]
    if fitting:
        return max(fitting, key=lambda one: one.reached).choice
    least = min(tries, key=lambda one: one.reached)
    measured = least.choice.measured
    assert measured is not None
    raise TargetError(
        f"Target {target} cannot be met: the fastest slim model that these options give takes {measured.slim:.4g} ms, "
        f"{measured.share:.1%} of the original's {measured.whole:.4g} ms. "
        "Loosen the target, exclude, min_channels, max_ratio or round_to."
    )
