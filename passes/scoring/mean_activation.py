"""Mean activation of a channel (Molchanov et al., Pruning CNNs for Resource Efficient Inference, ICLR 2017, section 2.2)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.moments import Moments, moment, needs_moments
from graphprune.statistic import Place


@criterion("mean-activation", needs=needs_moments, reduction="max", streams=True)
def mean_activation(context: ScoringContext, *, at: Place = "consumed") -> Floats:
    """``reduce_t |mean(a)|`` over samples and positions, t the activations of a unit; shape (units,), in activation units.

    Data: activations. Cost: one read of each activation.
    """
    measured = context.measured[Moments(at)]
    taps = context.taps(at)
    return context.reduce((tap.units, abs(moment(measured, tap, "sum")) / moment(measured, tap, "count")) for tap in taps)
