"""Distances between rows, in float64 and a block of rows at a time; pairs on a GPU by a kernel, as exact as float32."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from graphprune.kernels.channel_similarity import channel_similarity

_BLOCK = 1 << 24  # elements of float64 at once
_STEPS = 200  # of the geometric median, at most
_TOLERANCE = 1e-10  # of the rows' mean distance to it, in one step


def mean_euclidean(rows: Tensor) -> Tensor:
    """``1/(N-1) sum_{j != i} |x_i - x_j|`` for every row, float64 of shape (rows,); NaN for a single row, which has no other."""
    count = len(rows)
    if count < 2:
        return torch.full((count,), torch.nan, dtype=torch.float64)
    if rows.is_cuda:
        return channel_similarity([rows])[0].euclidean.double()
    rows = rows.double()
    rows = rows - rows.mean(0)  # distances are the same, and less is lost in the products below
    squares = rows.square().sum(1)
    found = []
    for start, block in _blocks(rows, count):
        products = block @ rows.mT
        own = squares[start : start + len(block), None]
        distances = (own + squares - 2 * products).clamp_min_(0).sqrt_()
        distances.diagonal(start).zero_()
        found.append(distances.sum(1) / (count - 1))
    return torch.cat(found)


def mean_cosine(rows: Tensor) -> Tensor:
    """``1/(N-1) sum_{j != i} (1 - x_i.x_j / |x_i||x_j|)`` for every row, float64 of shape (rows,); a row of zeros is at distance 1
    from all. Cosines add up to one product with the sum of all directions, so that no pair is formed."""
    count = len(rows)
    if count < 2:
        return torch.full((count,), torch.nan, dtype=torch.float64)
    directions: Tensor = rows.double()
    lengths = directions.norm(dim=1, keepdim=True)
    directions = directions / lengths.where(lengths > 0, 1.0)
    alike: Tensor = directions @ directions.sum(0) - directions.square().sum(1)
    return 1 - alike / (count - 1)


def geometric_median(rows: Tensor) -> Tensor:
    """The point with the least sum of distances to all rows, float64 of shape (elements,).

    Weiszfeld's iteration from the mean, with the step of Vardi and Zhang (PNAS 2000) where it meets a row, until it moves no
    more to speak of.
    """
    median = rows.double().mean(0)
    for _ in range(_STEPS):
        weight, pull, met, spread = 0.0, torch.zeros_like(median), 0, 0.0
        for _, block in _blocks(rows, rows.shape[1]):
            away = block.double() - median
            distances = away.norm(dim=1)
            inverse = torch.where(distances > 0, 1 / distances, 0.0)
            pull += inverse @ away
            weight += float(inverse.sum())
            met += int((distances == 0).sum())
            spread += float(distances.sum()) / len(rows)
        force = float(pull.norm())
        if not force or met >= force:
            break
        step = pull / weight * (1 - met / force)
        median = median + step
        if float(step.norm()) <= _TOLERANCE * spread:
            break
    return median


def median_distance(rows: Tensor) -> Tensor:
    """Distance of every row to the geometric median of all, float64 of shape (rows,); NaN for a single row."""
    if len(rows) < 2:
        return torch.full((len(rows),), torch.nan, dtype=torch.float64)
    median = geometric_median(rows)
    return torch.cat([(block.double() - median).norm(dim=1) for _, block in _blocks(rows, rows.shape[1])])


def _blocks(rows: Tensor, width: int) -> Iterator[tuple[int, Tensor]]:
    """Blocks of rows, with the place of the first, such that ``width`` numbers for each row are not too many at once."""
    size = max(1, _BLOCK // max(1, width))
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]
