"""Cosine similarity of filters: the most replaceable goes first (Ghimire et al., LAASP, 2023, arXiv 2506.20152)."""

from __future__ import annotations

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.filter_weights import FilterWeights, Scope
from graphprune.passes.scoring.similarity import mean_cosine


@criterion("cosine", filters=True, reduction="mean", streams=True)
def cosine(context: ScoringContext, *, scope: Scope = "layer") -> Floats:
    """``reduce_l 1/(N-1) sum_{j != k} (1 - cos(W_l[k], W_l[j]))`` over the layers l that make a unit's channels, and the N units of
    its group; shape (units,), each distance in [0, 2]. A filter of zeros is at distance 1 from all.

    The length of a filter does not matter, and so neither does a batch norm. scope: distances between filters of one layer, or
    between those of all layers of a group side by side. Data: none. Cost: one read of the weights.
    """
    producers = FilterWeights(context).producers(scope)
    return context.reduce((units, mean_cosine(rows).numpy(force=True)) for units, rows in producers)
