"""L2 norm of a unit's slices: group magnitude over all coupled tensors (Fang et al., DepGraph, CVPR 2023, eq. 4)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.magnitude import slice_powers


@criterion("l2", streams=True)
def l2(context: ScoringContext) -> Floats:
    """``reduce_m sqrt(sum w_m^2)`` over the members m (parameter axes) of a unit; shape (units,), in weight units."""
    return context.reduce(slice_powers(context, 2), 2)
