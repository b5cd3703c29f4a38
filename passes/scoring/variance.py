"""Variance of a channel: one that hardly varies can be replaced by its mean (Molchanov et al., ICLR 2017, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.moments import Moments, moment, needs_moments
from graphprune.statistic import Place


@criterion("variance", needs=needs_moments, reduction="max", streams=True)
def variance(context: ScoringContext, *, at: Place = "consumed") -> Floats:
    """``reduce_t (mean(a^2) - mean(a)^2)`` over samples and positions, t the activations of a unit; shape (units,), in squared
    activation units. Differences below float32's resolution of the mean square count as none.

    Data: activations. Cost: one read of each activation.
    """
    measured = context.measured[Moments(at)]

    def members() -> Iterator[tuple[Ints, Floats]]:
        for tap in context.taps(at):
            count = moment(measured, tap, "count")
            square = moment(measured, tap, "square") / count
            spread = square - (moment(measured, tap, "sum") / count) ** 2
            yield tap.units, np.where(spread > 1e-6 * square, spread, 0.0)

    return context.reduce(members())
