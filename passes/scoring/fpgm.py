"""Distance to the geometric median of the filters (He et al., Filter Pruning via Geometric Median, CVPR 2019, eq. 5)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.filter_weights import FilterWeights, Scope
from graphprune.passes.scoring.similarity import median_distance


@criterion("fpgm", filters=True, reduction="mean", streams=True)
def fpgm(context: ScoringContext, *, scope: Scope = "layer", bn_fold: bool = False) -> Floats:
    """``reduce_l |W_l[k] - median(W_l)|`` over the layers l that make a unit's channels; shape (units,), in weight units.

    The median is the point with the least sum of distances to the filters. Published code ranks by each filter's own sum of
    distances instead, which is ``euclidean``; the orders agree in round layers, and differ in elongated ones.

    scope: the filters of one layer, or those of all layers of a group side by side. bn_fold: filters are taken times
    ``|gamma| / sqrt(var + eps)`` of the batch norm that follows directly. Data: none. Cost: up to 200 reads of the weights.
    """
    producers = FilterWeights(context, bn_fold=bn_fold).producers(scope)
    return context.reduce((units, median_distance(rows).numpy(force=True)) for units, rows in producers)
