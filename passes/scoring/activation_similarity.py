"""Similarity of channels over their activations: the most replaceable goes first (cosine and CKA of single channels)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from graphprune.criteria import Floats, ScoringContext, criterion
from graphprune.groups import Ints
from graphprune.passes.calibration.gram import ChannelGram
from graphprune.statistic import Place, Statistic


def _needs(at: Place, positions: int, **options: object) -> tuple[Statistic, ...]:
    return (ChannelGram(at, positions),)


@criterion("activation-similarity", needs=_needs, reduction="max")
def activation_similarity(
    context: ScoringContext,
    *,
    kind: Literal["cosine", "cka", "euclidean"] = "cka",
    neighbours: Literal["mean", "nearest"] = "mean",
    at: Place = "consumed",
    positions: int = 64,
) -> Floats:
    """``reduce_t`` of the mean (or least) distance of a channel to the others of its activation t; shape (units,).

    ``cosine``: ``1 - |a_i.a_j| / |a_i||a_j|``; ``cka``: ``1 - corr(a_i, a_j)^2``, which is one minus the linear CKA of two single
    channels (Kornblith et al., ICML 2019, eq. 3); ``euclidean``: ``|a_i - a_j| / sqrt(rows)``. A channel without any variation has
    distance 0 under ``cka`` and ``cosine``: a constant replaces it. Data: activations. Cost: C^2 for each row.
    """
    measured = context.measured[ChannelGram(at, positions)]

    def members() -> Iterator[tuple[Ints, Floats]]:
        for tap in context.taps(at):
            gram, total, count = (measured.sums[tap.node, tap.axis, name].numpy(force=True) for name in ("gram", "sum", "count"))
            distance = _distances(gram, total, float(count), kind)
            others = len(distance) - 1
            if others == 0:
                yield tap.units, np.ones(1)
            elif neighbours == "mean":
                yield tap.units, distance.sum(1) / others
            else:
                np.fill_diagonal(distance, np.inf)
                yield tap.units, distance.min(1)

    return context.reduce(members())


def _distances(gram: Floats, total: Floats, count: float, kind: str) -> Floats:
    """Pairwise distances of channels, zero on the diagonal."""
    if kind == "euclidean":
        norms = np.diag(gram)
        squares = (norms[:, None] + norms[None, :] - 2 * gram) / count
        return np.sqrt(np.maximum(squares, 0))
    products = gram - np.outer(total, total) / count if kind == "cka" else gram
    norms = np.diag(products).copy()
    norms[norms <= 1e-6 * np.diag(gram)] = 0.0  # float32 cannot tell these from constants
    lengths = np.sqrt(np.outer(norms, norms))
    alike = np.divide(np.abs(products), lengths, out=np.ones_like(products), where=lengths > 0)
    distance: Floats = 1 - np.minimum(alike, 1.0) ** (2 if kind == "cka" else 1)
    np.fill_diagonal(distance, 0.0)
    return distance
