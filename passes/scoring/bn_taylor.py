"""First-order Taylor expansion at batch norms (Shen et al., HALP, NeurIPS 2022, eq. 3; Molchanov et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.saliency import WeightSaliency
from graphprune.passes.scoring.norms import batch_norm_parameters
from graphprune.statistic import Statistic


def _needs(**options: object) -> tuple[Statistic, ...]:
    return (WeightSaliency(),)


@criterion("bn-taylor", needs=_needs, reduction="sum", streams=True)
def bn_taylor(context: ScoringContext) -> Floats:
    """``reduce_m |gamma * dL/dgamma + beta * dL/dbeta|`` over the batch norms m of a unit's channels; shape (units,), in units of
    the loss: its change, to first order, if the norm's output were zero, with the mean gradient over all samples. NaN for units
    without a batch norm.

    Data: labelled. Cost: a backward pass.
    """
    sums = context.measured[WeightSaliency()].sums
    samples = sums[WeightSaliency.COUNT]

    def members() -> Iterator[tuple[Ints, Floats]]:
        for names in batch_norm_parameters(context.program):
            changes = [sums[name, 0] for name in names if (name, 0) in sums]
            if changes and names[0] in context.axes:
                ((_, units),) = context.axes[names[0]]
                yield units, (torch.stack(changes).sum(0) / samples).numpy(force=True)

    return context.reduce(members())
