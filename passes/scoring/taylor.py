"""First-order Taylor expansion of the loss (Molchanov et al., ICLR 2017, eq. 8, and CVPR 2019, eq. 8, over coupled units)."""

from __future__ import annotations

from typing import Literal

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.saliency import Saliency, WeightSaliency
from graphprune.statistic import Place, Statistic


def _needs(form: str, at: Place, **options: object) -> tuple[Statistic, ...]:
    return (WeightSaliency(),) if form == "weight" else (Saliency(at),)


@criterion("taylor", needs=_needs, streams=True)
def taylor(context: ScoringContext, *, form: Literal["activation", "weight"] = "activation", at: Place = "consumed") -> Floats:
    """Change of the loss, to first order, if a unit were zero; shape (units,), in units of the loss.

    ``activation``: ``mean_n |sum_t sum a * dL_n/da|`` over samples n and the activations t of a unit. ``weight``: ``reduce_m |sum
    w * dL/dw|`` over the members m, with the gradient of the mean loss. Data: labelled. Cost: a backward pass.
    """
    if form == "activation":
        measured = context.measured[Saliency(at)].sums
        if "abs" not in measured:
            return context.reduce(())
        return context.seen(at, (measured["abs"] / measured["count"]).numpy(force=True))
    changes = context.measured[WeightSaliency()].sums
    samples = changes[WeightSaliency.COUNT]
    return context.reduce(
        (units, (changes[name, axis] / samples).numpy(force=True))
        for name, axes in context.axes.items()
        for axis, units in axes
        if (name, axis) in changes  # no buffer, and no parameter on which the loss does not depend
    )
