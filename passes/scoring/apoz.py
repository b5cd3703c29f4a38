"""Average percentage of zeros, as the share of non-zeros (Hu et al., Network Trimming, 2016, eq. 1)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.moments import Moments, moment, needs_moments
from graphprune.statistic import Place


@criterion("apoz", needs=needs_moments, reduction="max", streams=True)
def apoz(context: ScoringContext, *, at: Place = "consumed") -> Floats:
    """``reduce_t (1 - APoZ) = reduce_t #(a != 0) / #a`` over the activations t of a unit; shape (units,), in [0, 1] for each.

    A channel that is often zero goes first. Data: activations. Cost: one read of each activation.
    """
    measured = context.measured[Moments(at)]
    taps = context.taps(at)
    return context.reduce((tap.units, moment(measured, tap, "nonzero") / moment(measured, tap, "count")) for tap in taps)
