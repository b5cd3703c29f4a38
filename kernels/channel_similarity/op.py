"""The operator ``graphprune::channel_similarity``, and the function in front of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from graphprune.kernels.channel_similarity import reference

Precision = Literal["highest", "high"]


class Similarity(NamedTuple):
    """Distances of each of N rows to the other N - 1: float32, or float64 for float64 matrices."""

    euclidean: Tensor
    """``[N]``: mean Euclidean distance."""
    cosine: Tensor
    """``[N]``: mean cosine distance, from 0 (all alike) to 2."""
    neighbour: Tensor
    """``[N]`` int64: the row that is nearest in Euclidean distance; any of them where several are."""
    nearest: Tensor
    """``[N]``: Euclidean distance to the neighbour."""


def channel_similarity(matrices: Sequence[Tensor], *, precision: Precision = "highest") -> list[Similarity]:
    """How far each row of a matrix is from the other rows, for many matrices at once.

    Runs as Triton kernels on CUDA tensors, over all matrices together, and in PyTorch elsewhere. No N x N matrix is ever
    held: memory is of the order of the matrices. The same input gives the same bits in every run on one device. A row of
    zeros has cosine distance 1 to every other. The only row of a matrix is infinitely far from the others, and its
    neighbour is -1. A value that is not finite makes its matrix's Euclidean results NaN. Nothing here is differentiable.

    Args:
        matrices: Floating point ``[N, ...]`` each, of one dtype and on one device: weights of layers, say, where row i is
            filter i. What follows the first dimension is flattened.
        precision: What the products of rows are worth, for float32 and shorter types on CUDA. ``"highest"``: two float16
            per value and three products, about 22 bits, as good as float32. ``"high"``: one float16 per value, 11 bits, as
            TF32, at a third of the time. The distance to the neighbour, once found, is exact to float32 in both.

    Returns:
        One result per matrix, in order.

    Raises:
        TypeError: A matrix is not floating point.
        ValueError: A matrix without rows' dimension, matrices of several dtypes or devices, or an unknown precision.

    The mean distances are two of the criteria of "Loss-aware automatic selection of structured pruning criteria" (Ghimire et
    al., 2023); splitting values in two is from "Recovering single precision accuracy from Tensor Cores" (Ootomo and
    Yokota, 2022).

    Example:
        >>> import torch
        >>> from graphprune.kernels.channel_similarity import channel_similarity
        >>> filters = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 4.0]])  # the first two are the same
        >>> (found,) = channel_similarity([filters])
        >>> found.euclidean, found.cosine
        (tensor([2.5000, 2.5000, 5.0000]), tensor([0.5000, 0.5000, 1.0000]))
        >>> found.neighbour[:2], found.nearest
        (tensor([1, 0]), tensor([0., 0., 5.]))
    """
    matrices = [matrix.detach() for matrix in matrices]
    _check(matrices, precision)
    if not matrices:
        return []
    columns = (column.split([len(matrix) for matrix in matrices]) for column in _similarity(matrices, precision))
    return [Similarity(*parts) for parts in zip(*columns, strict=True)]


def _check(matrices: Sequence[Tensor], precision: str) -> None:
    """Refuse what the operator does not take."""
    if precision not in get_args(Precision):
        raise ValueError(f"The precision must be one of {', '.join(get_args(Precision))}, but is {precision!r}.")
    for matrix in matrices:
        if not matrix.is_floating_point():
            raise TypeError(f"Distances are between rows of floating point matrices, but this one is {matrix.dtype}.")
        if matrix.ndim == 0:
            raise ValueError("A matrix needs a dimension for its rows, but this one is a scalar.")
        if (matrix.dtype, matrix.device) != (matrices[0].dtype, matrices[0].device):
            raise ValueError(
                f"Matrices of one call must be alike, but one is {matrix.dtype} on {matrix.device} "
                f"and the first {matrices[0].dtype} on {matrices[0].device}."
            )


@torch.library.custom_op(
    "graphprune::channel_similarity",
    mutates_args=(),
    schema="(Tensor[] matrices, str precision) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _similarity(matrices: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return reference.similarity(matrices)


@_similarity.register_kernel("cuda")
def _(matrices: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if matrices[0].dtype == torch.float64 or importlib.util.find_spec("triton") is None:
        return reference.similarity(matrices)
    from graphprune.kernels.channel_similarity.launch import launch  # needs Triton

    return launch(matrices, 1 if precision == "high" else 2)


@_similarity.register_fake
def _(matrices: Sequence[Tensor], precision: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = sum(len(matrix) for matrix in matrices)
    wide = matrices[0].new_empty(rows, dtype=reference.accumulator(matrices[0].dtype))
    return wide, torch.empty_like(wide), torch.empty_like(wide, dtype=torch.int64), torch.empty_like(wide)
