"""Attention of a channel: the mean, sum or maximum of |a|^p over its activations (Zhao et al., Automatic Attention Pruning,
AISTATS 2023, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.moments import Moments, moment, needs_moments
from graphprune.statistic import Place

_POWERS = {1: "abs", 2: "square", 4: "fourth"}


@criterion("attention", needs=needs_moments, reduction="max", streams=True)
def attention(
    context: ScoringContext,
    *,
    p: Literal[1, 2, 4] = 1,
    statistic: Literal["mean", "sum", "max"] = "mean",
    at: Place = "consumed",
) -> Floats:
    """``reduce_t F(|a|^p)`` over the activations t of a unit's channels; shape (units,), in activation units to the power p.

    F is the mean over samples and positions, the sum over positions averaged over samples, or the maximum over both. Data:
    activations. Cost: one read of each activation.
    """
    measured = context.measured[Moments(at)]

    def members() -> Iterator[tuple[Ints, Floats]]:
        for tap in context.taps(at):
            if statistic == "max":
                yield tap.units, moment(measured, tap, "max") ** p
            else:
                count = moment(measured, tap, "count" if statistic == "mean" else "samples")
                yield tap.units, moment(measured, tap, _POWERS[p]) / count

    return context.reduce(members())
