"""Norms of a unit's slices, shared by the magnitude criteria."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from graphprune.criteria import Floats, ScoringContext
from graphprune.groups import Ints


def slice_norms(context: ScoringContext, power: int) -> Iterator[tuple[Ints, Floats]]:
    """For every parameter axis: its units, and ``(sum |w|^p)^(1/p)`` over all elements of each unit's slice (float64)."""
    for parameter, axis, units in context.members():
        weight = parameter.detach().abs()
        if power != 1:
            weight = weight.pow(power)
        others = [a for a in range(weight.dim()) if a != axis]
        sums = weight.double().sum(others) if others else weight.double()
        totals = np.bincount(units, weights=sums.cpu().numpy(), minlength=context.groups.unit_count)
        present = np.unique(units)
        yield present, totals[present] ** (1.0 / power)
