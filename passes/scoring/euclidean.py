"""Euclidean similarity of filters: the most replaceable goes first (Ghimire et al., LAASP, 2023, arXiv 2506.20152)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.filter_weights import FilterWeights, Scope
from graphprune.passes.scoring.similarity import mean_euclidean


@criterion("euclidean", filters=True, reduction="mean", streams=True)
def euclidean(context: ScoringContext, *, scope: Scope = "layer", bn_fold: bool = False) -> Floats:
    """``reduce_l 1/(N-1) sum_{j != k} |W_l[k] - W_l[j]|`` over the layers l that make a unit's channels, and the N units of its
    group; shape (units,), in weight units.

    scope: distances between filters of one layer, or between those of all layers of a group side by side. bn_fold: filters are
    taken times ``|gamma| / sqrt(var + eps)`` of the batch norm that follows directly. Data: none. Cost: N products of each filter.
    """
    producers = FilterWeights(context, bn_fold=bn_fold).producers(scope)
    return context.reduce((units, mean_euclidean(rows).numpy(force=True)) for units, rows in producers)
