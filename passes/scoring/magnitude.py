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
        yield from slice_sums(_powers(parameter.detach(), power), axes)


def _powers(weight: Tensor, power: int) -> Tensor:
    """``|w|^p``; in place where the weight was converted, since a model may be as large as its largest tensors allow."""
    if weight.dtype in (torch.float16, torch.bfloat16):
        weight = weight.float()
        return weight.square_() if power == 2 else weight.abs_() if power == 1 else weight.abs_().pow_(power)
    return weight.square() if power == 2 else weight.abs() if power == 1 else weight.abs().pow(power)


def slice_sums(tensor: Tensor, axes: Sequence[tuple[int, Ints]]) -> Iterator[tuple[Ints, Floats]]:
    """For some axes of a tensor: the unit of each index, and the sum of all elements at that index."""
    for axis, units in axes:
        # Two steps, each over neighbouring axes, take half the time of one over axes on both sides.
        sums = tensor.sum(tuple(range(axis))) if axis else tensor
        sums = sums.sum(tuple(range(1, sums.dim()))) if sums.dim() > 1 else sums
        yield units, sums.numpy(force=True)
