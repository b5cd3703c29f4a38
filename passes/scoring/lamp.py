"""LAMP: magnitude relative to what is left of the layer (Lee et al., Layer-Adaptive Sparsity, ICLR 2021, eq. 3), over units."""

from __future__ import annotations

import numpy as np

from graphprune.channels.groups import Groups
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.magnitude import slice_powers


@criterion("lamp", streams=True)
def lamp(context: ScoringContext) -> Floats:
    """``s_k / sum of s_j over the units j of the group that are not smaller``, s_k the squared ``l2`` score of k; shape (units,).

    In [0, 1], with 1 for exactly one unit of each group that is not zero, so that ``normalise=max`` changes nothing: groups compare
    as they are. The sum includes the unit itself; of equal units the first goes first. Data: none. Cost: one read of the weights.
    """
    return lamp_normalised(context.reduce(slice_powers(context, 2), 2) ** 2, context.groups)


def lamp_normalised(values: Floats, groups: Groups) -> Floats:
    """Each value over the sum of the values of its group from it upwards, in ascending order; NaN stays NaN."""
    result = np.full(values.size, np.nan)
    for group in groups.prunable:
        units = group.units[~np.isnan(values[group.units])]
        # The last of equal units in descending order is the first to go, as it is in the ranking.
        units = units[np.argsort(values[units], kind="stable")][::-1]
        rest = np.cumsum(values[units])
        result[units] = np.divide(values[units], rest, out=np.zeros(units.size), where=rest > 0)
    return result
