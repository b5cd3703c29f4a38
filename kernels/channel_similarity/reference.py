"""Distances between the rows of matrices in plain PyTorch: what runs on a CPU, and what the tests hold the kernel against.

The mean cosine distance has a closed form: with u_i the rows scaled to length one and s their sum, the sum over j != i of
u_i . u_j is u_i . s - u_i . u_i. Euclidean distances come from |x_i|^2 + |x_j|^2 - 2 x_i . x_j, over blocks of rows; the
mean row is taken off first, which changes no distance and leaves less to cancel. What cancellation is left matters where
two rows are close, so the distance to the nearest neighbour is computed again, from the difference of the two rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Distances that are held at a time: 4 MiB in float32.
BLOCK = 1 << 20


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that distances of a dtype are computed in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def similarity(matrices: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Distances within each matrix.

    Args:
        matrices: Floating point ``[N, ...]`` each, on one device and of one dtype; at least one.

    Returns:
        Mean Euclidean distance, mean cosine distance, row of the nearest neighbour (int64) and distance to it, each
        ``[sum of N]``: the matrices one after another.
    """
    parts = [_distances(matrix.reshape(len(matrix), matrix.shape[1:].numel())) for matrix in matrices]
    euclidean, cosine, neighbour, nearest = (torch.cat(column) for column in zip(*parts, strict=True))
    return euclidean, cosine, neighbour, nearest


def _distances(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four results of one matrix ``[N, D]``."""
    rows = matrix.to(accumulator(matrix.dtype))
    if len(rows) < 2 or rows.shape[1] == 0:
        return _degenerate(rows)
    total, nearest, neighbour = _euclidean(rows)
    others = len(rows) - 1
    exact = torch.cat([(rows[start:stop] - rows[neighbour[start:stop]]).norm(dim=1) for start, stop in _chunks(rows)])
    return (total - nearest + exact) / others, _cosine(rows), neighbour, exact


def _degenerate(rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A row without others is infinitely far from them; rows of no length are all alike."""
    alone = len(rows) < 2
    far = torch.full_like(rows[:, :0].sum(1), torch.inf if alone else 0.0)
    neighbour = torch.full((len(rows),), -1 if alone else 0, dtype=torch.int64, device=rows.device)
    if not alone:
        neighbour[0] = 1
    return far, far.clone() if alone else torch.ones_like(far), neighbour, far.clone()


def _cosine(rows: Tensor) -> Tensor:
    """Mean cosine distance of each row to the others."""
    largest = rows.abs().amax(1, keepdim=True)
    unit = rows / torch.where(largest > 0, largest, 1.0)  # no square of it leaves the range of the type
    length = unit.norm(dim=1, keepdim=True)
    unit /= torch.where(length > 0, length, 1.0)
    similar = unit @ unit.sum(0) - (unit * unit).sum(1)
    return 1 - similar / (len(rows) - 1)


def _euclidean(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the distances of each row to the others, the smallest of them, and whose it is."""
    centred = rows - rows.mean(0)
    largest = centred.abs().amax()
    scale = torch.where(largest > 0, largest, 1.0)
    centred /= scale
    squares = (centred * centred).sum(1)
    total, nearest, neighbour = (
        torch.empty_like(squares),
        torch.empty_like(squares),
        squares.new_empty(len(rows), dtype=torch.int64),
    )
    step = max(1, BLOCK // len(rows))
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        distances = torch.addmm(squares, centred[block], centred.T, alpha=-2).add_(squares[block, None]).clamp_(min=0).sqrt_()
        itself = distances.diagonal(start)
        itself.zero_()
        torch.sum(distances, 1, out=total[block])
        itself.fill_(torch.inf)
        torch.min(distances, 1, out=(nearest[block], neighbour[block]))
    return total * scale, nearest * scale, neighbour


def _chunks(rows: Tensor) -> list[tuple[int, int]]:
    """Ranges of rows that hold about a block of values each."""
    step = max(1, BLOCK // rows.shape[1])
    return [(start, min(start + step, len(rows))) for start in range(0, len(rows), step)]
