"""Powers of a unit's weights, shared by the magnitude criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from graphprune.criteria import Floats, ScoringContext
from graphprune.groups import Ints


def slice_powers(context: ScoringContext, power: int) -> Iterator[tuple[Ints, Floats]]:
    """For every parameter axis: the unit of each index, and ``sum |w|^p`` over all elements at that index.

    Sums are taken in the weight's precision (float32 at least; torch sums pairwise), results are float64.
    """
    for parameter, axes in context.members():
        weight = parameter.detach()
        weight = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
        powers = weight.square() if power == 2 else weight.abs() if power == 1 else weight.abs().pow(power)
        yield from slice_sums(powers, axes)


def slice_sums(tensor: Tensor, axes: Sequence[tuple[int, Ints]]) -> Iterator[tuple[Ints, Floats]]:
    """For some axes of a tensor: the unit of each index, and the sum of all elements at that index."""
    for axis, units in axes:
        # Two steps, each over neighbouring axes, take half the time of one over axes on both sides.
        sums = tensor.sum(tuple(range(axis))) if axis else tensor
        sums = sums.sum(tuple(range(1, sums.dim()))) if sums.dim() > 1 else sums
        yield units, sums.numpy(force=True)
