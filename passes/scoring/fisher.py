"""Diagonal Fisher information of a unit's mask (Theis et al., 2018, eq. 10; Liu et al., Group Fisher Pruning, ICML 2021)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.saliency import Saliency
from graphprune.statistic import Place, Statistic


def _needs(at: Place, **options: object) -> tuple[Statistic, ...]:
    return (Saliency(at),)


@criterion("fisher", needs=_needs, streams=True)
def fisher(context: ScoringContext, *, at: Place = "consumed") -> Floats:
    """``1/2 mean_n (sum_t sum a * dL_n/da)^2`` over samples n and the activations t of a unit; shape (units,), in units of the
    loss: the diagonal of the empirical Fisher matrix of a mask on units, which estimates the second-order change of the loss.

    Data: labelled. Cost: a backward pass.
    """
    measured = context.measured[Saliency(at)].sums
    if "square" not in measured:
        return context.reduce(())
    return context.seen(at, (0.5 * measured["square"] / measured["count"]).numpy(force=True))
