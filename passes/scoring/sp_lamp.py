"""SP-LAMP: layer-adaptive scores of filters and the channels that read them (arXiv 2305.14403, eq. 2), over coupled layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.scoring.filter_weights import FilterWeights
from graphprune.passes.scoring.lamp import lamp_normalised


@criterion("sp-lamp", filters=True, reduction="mean", streams=True)
def sp_lamp(
    context: ScoringContext,
    *,
    aggregation: Literal["concat", "members"] = "concat",
    member_norm: bool = False,
    bn_fold: bool = False,
) -> Floats:
    """``s_k / sum of s_j over the units j of the group that are not smaller``; shape (units,). In [0, 1], with 1 for exactly one
    unit of each group, so that ``normalise=max`` changes nothing. The sum includes the unit itself (the paper's eq. 1 and 3 leave
    it out by mistake). Rescaling a layer changes nothing.

    ``concat``: ``s_k = (sum_l |W_l[k]|^2) (sum_m |W_m[:, k]|^2)`` over the layers l that make a channel and the layers m that
    read it; a factor without a layer is 1. ``members``: each layer is normalised by itself, and the reduction combines them,
    without the unique 1. member_norm: layers have the same total. bn_fold: weights that make channels are taken times
    ``|gamma| / sqrt(var + eps)`` of the batch norm that follows directly. Data: none. Cost: one read of the weights.
    """
    weights = FilterWeights(context, bn_fold=bn_fold)

    def layers(makes: bool) -> Iterator[tuple[Ints, Floats]]:
        for found in weights.filters(makes=makes):
            for units, squares in weights.squares(found):
                total = squares.sum()
                yield units, squares / total if member_norm and total > 0 else squares

    if aggregation == "members":
        return context.reduce(
            (units, _alone(context, units, squares)) for makes in (True, False) for units, squares in layers(makes)
        )
    product, known = np.ones(context.groups.unit_count), np.zeros(context.groups.unit_count, dtype=bool)
    for makes in (True, False):
        factor, seen = np.zeros_like(product), np.zeros_like(known)
        for units, squares in layers(makes):
            factor[units] += squares
            seen[units] = True
        product[seen] *= factor[seen]
        known |= seen
    return lamp_normalised(np.where(known, product, np.nan), context.groups)


def _alone(context: ScoringContext, units: Ints, squares: Floats) -> Floats:
    """The squares of one layer, normalised by themselves."""
    values = np.full(context.groups.unit_count, np.nan)
    values[units] = squares
    return lamp_normalised(values, context.groups)[units]
