"""Similarity of channels over their activations: the most replaceable goes first (cosine and CKA of single channels)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext, criterion
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
            gram, total, count = (measured.sums[tap.node, tap.axis, name] for name in ("gram", "sum", "count"))
            if len(gram) == 1:
                yield tap.units, np.ones(1)
                continue
            alike = _likeness(gram, total, count, kind)
            alike.fill_diagonal_(0.0 if neighbours == "mean" else -torch.inf)
            most = alike.sum(1) / (len(gram) - 1) if neighbours == "mean" else alike.amax(1)
            yield tap.units, (-most if kind == "euclidean" else 1 - most).numpy(force=True)

    return context.reduce(members())


def _likeness(gram: Tensor, total: Tensor, count: Tensor, kind: str) -> Tensor:
    """How alike each pair of channels is: 1 for channels that replace one another, or minus their distance (``euclidean``)."""
    own = gram.diagonal()
    if kind == "euclidean":
        return (own[:, None] + own - 2 * gram).clamp_min_(0).div_(count).sqrt_().neg_()
    products = torch.addr(gram, total, total / count, alpha=-1) if kind == "cka" else gram.clone()
    norms = products.diagonal().clone()
    constant = norms <= 1e-6 * own  # float32 cannot tell these from constants
    scale = norms.where(~constant, 1.0).rsqrt()
    alike = products.mul_(scale[:, None]).mul_(scale)
    alike = (alike.square_() if kind == "cka" else alike.abs_()).clamp_max_(1.0)
    if bool(constant.any()):
        alike[:, constant] = 0.0
        alike[constant, :] = 1.0  # whatever replaces these, a constant will do
    return alike
