"""Rank of feature maps (Lin et al., HRank, CVPR 2020, eq. 5)."""

from __future__ import annotations

from collections.abc import Iterator

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.passes.calibration.ranks import Ranks
from graphprune.statistic import Place, Statistic


def _needs(at: Place, samples: int, tolerance: float) -> tuple[Statistic, ...]:
    return (Ranks(at, samples, tolerance),)


@criterion("rank", needs=_needs, reduction="max", streams=True)
def rank(context: ScoringContext, *, samples: int = 500, tolerance: float = 1e-5, at: Place = "consumed") -> Floats:
    """``reduce_t mean_n rank(a_n)`` over samples n and the activations t of a unit, a_n one channel's map of one sample; shape
    (units,), each in [0, the shorter side]. NaN for units whose activations have no two axes of places, such as tokens.

    samples: the first so many. tolerance: singular values up to this part of a map's largest are none. Data: activations. Cost:
    the singular values of every map.
    """
    measured = context.measured[Ranks(at, samples, tolerance)].sums

    def members() -> Iterator[tuple[Ints, Floats]]:
        for tap in context.taps(at):
            if (tap.node, tap.axis, "rank") in measured:
                total, count = (measured[tap.node, tap.axis, name].numpy(force=True) for name in ("rank", "count"))
                yield tap.units, total / count

    return context.reduce(members())
