"""L1 norm of a unit's slices (Li et al., Pruning Filters for Efficient ConvNets, ICLR 2017, over whole coupled units)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.magnitude import slice_powers


@criterion("l1", streams=True)
def l1(context: ScoringContext) -> Floats:
    """``reduce_m sum |w_m|`` over the members m (parameter axes) of a unit; shape (units,), in weight units."""
    return context.reduce(slice_powers(context, 1), 1)
