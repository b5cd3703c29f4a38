"""What the operators are compared with: the same results in plain PyTorch, and torch.cdist."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

TAU = 0.01


def statistics(a: Tensor) -> tuple[Tensor, ...]:
    """The six statistics of an activation, as one would write them."""
    dims = [0, *range(2, a.ndim)]
    x = a.float()
    magnitude, square = x.abs(), x * x
    sums = x.sum(dims), magnitude.sum(dims), square.sum(dims), (square * square).sum(dims)
    return *sums, magnitude.amax(dims), (a != 0).sum(dims)


def statistics_with_gradient(a: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """Those and the three of activation times gradient."""
    term = a.float() * g.float()
    magnitude = term.abs()
    dims = [0, *range(2, a.ndim)]
    indicator = (magnitude > TAU).sum(0, dtype=torch.int32)
    return *statistics(a), term.sum(list(range(2, a.ndim))), magnitude.sum(dims), indicator


def cdist(matrices: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Mean distance, nearest neighbour and its distance of each matrix; the cosine distances are left out."""
    results = []
    for matrix in matrices:
        distances = torch.cdist(matrix, matrix)
        mean = distances.sum(1) / (len(matrix) - 1)
        nearest, neighbour = distances.fill_diagonal_(torch.inf).min(1)
        results.append((mean, neighbour, nearest))
    return results


def products(matrices: list[Tensor]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The same from one product of matrices, which torch.compile can fuse the rest to."""
    results = []
    for matrix in matrices:
        centred = matrix - matrix.mean(0)
        square = (centred * centred).sum(1)
        distances = (square[:, None] + square - 2 * centred @ centred.T).clamp(min=0).sqrt()
        itself = torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
        nearest, neighbour = distances.masked_fill(itself, torch.inf).min(1)
        results.append((distances.masked_fill(itself, 0).sum(1) / (len(matrix) - 1), neighbour, nearest))
    return results


def resnet50_filters() -> Iterator[tuple[int, int]]:
    """Filters and their length of the 53 convolutions of ResNet-50."""
    yield 64, 3 * 7 * 7
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from ((width, channels), (width, 9 * width), (4 * width, width))
            if block == 0:
                yield 4 * width, channels
            channels = 4 * width


def resnet50_activations(samples: int) -> dict[tuple[int, int, int, int], int]:
    """Shapes of what the 53 convolutions of ResNet-50 give for images of 224 x 224, and how often each is there."""
    shapes = {(64, 112): 1}
    for stage, (width, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        size = 56 >> stage
        strided = size if stage == 0 else 2 * size  # the first block's first convolution is not yet strided
        counted = [((width, strided), 1), ((width, size), 2 * blocks - 1), ((4 * width, size), blocks + 1)]
        for shape, count in counted:
            shapes[shape] = shapes.get(shape, 0) + count
    return {(samples, channels, size, size): count for (channels, size), count in shapes.items()}
