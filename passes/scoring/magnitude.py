"""Norms of a unit's slices, shared by the magnitude criteria."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from graphprune.criteria import Floats, ScoringContext
from graphprune.groups import Ints


def slice_norms(context: ScoringContext, power: int) -> Iterator[tuple[Ints, Floats]]:
    """For every parameter axis: its units, and ``(sum |w|^p)^(1/p)`` over all elements of each unit's slice.

    Sums are taken in the weight's precision (float32 at least; torch sums pairwise), results are float64.
    """
    for parameter, axes in context.members():
        weight = parameter.detach()
        weight = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
        powers = weight.abs() if power == 1 else weight.abs().pow(power) if power != 2 else weight.square()
        for axis, units in axes:
            others = [other for other in range(weight.dim()) if other != axis]
            sums = (powers.sum(others) if others else powers).double()
            present, place = np.unique(units, return_inverse=True)
            totals = np.bincount(place, weights=sums.cpu().numpy()).astype(np.float64)
            yield present, totals ** (1.0 / power)
