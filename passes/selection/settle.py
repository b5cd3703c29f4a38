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
from graphprune.passes.selection.bounds import Limit

_TRIES: Final = 6
_CLOSE: Final = 0.01  # of the target: a measured latency this near is the target's
_STEEPEST: Final = 3.0  # a budget moves by this factor at most, in one try


@dataclass(frozen=True)
class Choice:
    """Widths that a pass chose. notes: for the record. measured: their latency, where it was."""

    widths: Ints
    notes: dict[str, str] = field(default_factory=dict)
    measured: Measured | None = None


@dataclass(frozen=True)
class _Try:
    budget: float
    choice: Choice
    reached: float  # the measured latency as a share of the target's


def settled(limit: Limit, measure: Callable[[Ints], Measured], choose: Callable[[float], Choice]) -> Choice:
    """The choice whose measured latency is within 1 % of the target, or else the nearest one below it.

    limit: the target on latency, and the predicted milliseconds that it amounts to. choose: the best choice for a budget of
    predicted milliseconds; raises TargetError where none is so low. Raises TargetError where all that were tried are slower.
    """
    tries: list[_Try] = []
    budget = limit.most
    for _ in range(_TRIES):
        try:
            chosen = choose(budget)
        except TargetError:
            if not tries:
                raise
            break
        known = next((one for one in tries if (one.choice.widths == chosen.widths).all()), None)
        if known is not None:  # the same widths again: no budget between the two gives others
            break
        measured = measure(chosen.widths)
        tries.append(
            _Try(budget, Choice(chosen.widths, chosen.notes, measured), measured.slim / limit.target.limit(measured.whole))
        )
        if abs(tries[-1].reached - 1) <= _CLOSE:
            break
        budget = _next(tries)
    return _best(tries, limit)


def _next(tries: list[_Try]) -> float:
    """The next budget: by the line through the two tries nearest to the target, or in proportion."""
    last = tries[-1]
    proportional = last.budget / last.reached
    near = sorted(tries, key=lambda one: abs(one.reached - 1))[:2]
    if len(near) < 2 or near[0].reached == near[1].reached:
        return proportional
    slope = (near[1].budget - near[0].budget) / (near[1].reached - near[0].reached)
    found = near[0].budget + slope * (1 - near[0].reached)
    low, high = near[0].budget / _STEEPEST, near[0].budget * _STEEPEST
    return min(high, max(low, found)) if slope > 0 else near[0].budget / near[0].reached


def _best(tries: list[_Try], limit: Limit) -> Choice:
    fitting = [one for one in tries if one.reached <= 1 + _CLOSE]
    if fitting:
        return max(fitting, key=lambda one: one.reached).choice
    least = min(tries, key=lambda one: one.reached)
    measured = least.choice.measured
    assert measured is not None
    raise TargetError(
        f"Target {limit.target} cannot be met: the fastest slim model that these options give takes {measured.slim:.4g} ms, "
        f"{measured.share:.1%} of the original's {measured.whole:.4g} ms. "
        "Loosen the target, exclude, min_channels, max_ratio or round_to."
    )
