"""Class-aware score: for how many classes a channel matters (class-aware pruning, DATE 2024, arXiv 2312.05875)."""

from __future__ import annotations

import numpy as np

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.classes import ClassIndicators
from graphprune.statistic import Place, Statistic


def _needs(at: Place, samples: int, tau: float, relative: bool, **options: object) -> tuple[Statistic, ...]:
    return (ClassIndicators(at, samples, tau, relative),)


@criterion("class-aware", needs=_needs, reduction="max", streams=True)
def class_aware(
    context: ScoringContext, *, samples: int = 10, tau: float = 0.0, relative: bool = False, at: Place = "produced"
) -> Floats:
    """``reduce_t max_yx sum_c mean_{n in c} [|a * dL_n/da| > tau]`` over the activations t of a unit; shape (units,), each in
    [0, classes]: the number of classes for which the channel's most general position matters.

    samples: of each class. tau, relative: see :class:`ClassIndicators`; the paper's 1e-50 is 0 in float32. Equal counts are
    told apart by the mean of |a * dL/da|, as far as float64 leaves the counts in order. Data: labelled. Cost: a backward pass.
    """
    measured = context.measured[ClassIndicators(at, samples, tau, relative)].sums
    found = []
    for tap in context.taps(at):
        if (tap.node, tap.axis, "reach") in measured:
            reach, change = (measured[tap.node, tap.axis, name].numpy(force=True) for name in ("reach", "taylor"))
            found.append((tap.units, reach.max(1) + 1e-6 * change / (change.max() or 1.0)))
        else:  # the loss does not depend on it
            found.append((tap.units, np.zeros(tap.units.size)))
    return context.reduce(found)
