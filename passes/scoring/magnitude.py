"""Powers of a unit's weights, shared by the magnitude criteria."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import torch
from torch import Tensor

from graphprune.channels.groups import Ints
from graphprune.criteria import Floats, ScoringContext
from graphprune.scratch import Scratch

_BLOCK: Final = 2**22  # elements that are raised at a time: what stays in the cache is summed at twice the speed


def slice_powers(context: ScoringContext, power: int) -> Iterator[tuple[Ints, Floats]]:
    """For every parameter axis: the unit of each index, and ``sum |w|^p`` over all elements at that index.

    Sums are taken in the weight's precision (float32 at least; torch sums pairwise), results are float64.
    """
    scratch = Scratch(_BLOCK)
    for parameter, axes in context.members():
        weight = parameter.detach().abs() if parameter.is_complex() else parameter.detach()
        dtype = torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype
        if weight.dim() < 2:
            yield from slice_sums(_raised(weight, power, torch.empty_like(weight, dtype=dtype)), axes)  # which are itself
        elif weight.numel() <= _BLOCK:
            yield from slice_sums(_raised(weight, power, scratch.of(weight.shape, weight, dtype)), axes)
        else:
            yield from _by_blocks(weight, power, axes, dtype, scratch)


def _by_blocks(
    weight: Tensor, power: int, axes: Sequence[tuple[int, Ints]], dtype: torch.dtype, scratch: Scratch
) -> Iterator[tuple[Ints, Floats]]:
    """The same of a large weight, of which only so much is raised at a time as stays in the cache."""
    blocks = weight.split(max(1, _BLOCK * len(weight) // weight.numel()))
    parts = [[*slice_sums(_raised(block, power, scratch.of(block.shape, block, dtype)), axes)] for block in blocks]
    for (axis, units), *found in zip(axes, *parts, strict=True):
        sums = [values.astype(np.float64) for _, values in found]
        yield units, np.sum(sums, axis=0) if axis else np.concatenate(sums)


def _raised(weight: Tensor, power: int, out: Tensor) -> Tensor:
    """``|w|^p`` in the dtype of ``out``, which it is written to."""
    source = weight if weight.dtype == out.dtype else out.copy_(weight)
    if power == 2:
        return torch.square(source, out=out)
    torch.abs(source, out=out)
    return out if power == 1 else out.pow_(power)


def slice_sums(tensor: Tensor, axes: Sequence[tuple[int, Ints]]) -> Iterator[tuple[Ints, Floats]]:
    """For some axes of a tensor: the unit of each index, and the sum of all elements at that index."""
    for axis, units in axes:
        # Two steps, each over neighbouring axes, take half the time of one over axes on both sides.
        sums = tensor.sum(tuple(range(axis))) if axis else tensor
        sums = sums.sum(tuple(range(1, sums.dim()))) if sums.dim() > 1 else sums
        yield units, sums.numpy(force=True)
