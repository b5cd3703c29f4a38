"""How distances between rows are put on a GPU: the matrices side by side, and the launches over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from graphprune.kernels.channel_similarity import kernel
from graphprune.kernels.channel_similarity.reference import similarity

_PADDING: int = kernel.PADDING.value
_GROUP: int = kernel.GROUP.value
_COLUMNS_EACH = 64  # of a program that adds up columns
_CHUNKS = 32  # parts of the rows that are added up apart, at most
_ROWS_EACH = 128  # of a chunk, at least
_LARGE_ROWS = 1024  # of a matrix: from here on there are enough large tiles
_VALUES_EACH = 1024  # of a row at a time
_SPLIT_ROWS, _SPLIT_VALUES = 4, 512  # of a program that splits rows, at a time


@dataclass(frozen=True)
class Tiling:
    """How the products are cut up."""

    block: int
    """Rows on each side of a tile."""
    depth: int
    """Columns at a time; divides the padding of split rows."""
    warps: int
    stages: int
    """Tiles that are loaded ahead."""
    slots: int = 64
    """Places for partial results of a row, a power of two; workspace is 12 bytes for each and every row."""


# Each was the fastest of those that were measured on an NVIDIA H200.
LARGE = Tiling(block=128, depth=64, warps=8, stages=3)
LARGE_HIGH = Tiling(block=128, depth=64, warps=8, stages=4)  # of one float16 for each value
SMALL = Tiling(block=64, depth=64, warps=4, stages=3)
_SQUARES = Tiling(block=64, depth=64, warps=4, stages=3)


def launch(matrices: Sequence[Tensor], parts: int, tiling: Tiling | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.similarity``, for float32, float16 and bfloat16.

    Args:
        matrices: Floating point ``[N, ...]`` each, on one device and of one dtype; at least one.
        parts: Two float16 for each value, or one.
        tiling: Of the products; by the size of the matrices if not given.
    """
    shapes = [(len(matrix), matrix.shape[1:].numel()) for matrix in matrices]
    if any(0 in shape for shape in shapes):
        return similarity(matrices)
    large = LARGE if parts == 2 else LARGE_HIGH
    tiling = tiling or (large if max(shapes)[0] >= _LARGE_ROWS else SMALL)
    packed = matrices[0].reshape(-1) if len(matrices) == 1 else torch.cat([matrix.reshape(-1) for matrix in matrices])
    counts = _counts(shapes, tiling)
    starts = torch.tensor([list(accumulate(column, initial=0)) for column in counts], dtype=torch.int64).to(
        packed.device, non_blocking=True
    )
    _, rows, columns, split, column_blocks, tiles, square_tiles, split_tiles = (sum(column) for column in counts)
    common = {"STEPS": len(matrices).bit_length()}
    wide = {"BLOCK_D": min(_VALUES_EACH, _power_of_two(max(length for _, length in shapes))), **common}

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=packed.device)

    inverse = empty(rows)
    kernel.length_kernel[(rows,)](packed, starts, inverse, len(matrices), **wide)
    chunks = min(_CHUNKS, _ceil(max(shapes)[0], _ROWS_EACH))
    column = empty(chunks, 2, columns)
    kernel.column_kernel[(column_blocks, chunks)](
        packed, starts, inverse, column, len(matrices), columns, chunks, BLOCK_N=32, BLOCK_D=_COLUMNS_EACH, **common
    )
    column = column[0] if chunks == 1 else column.sum(0)

    cosine, scale, square = empty(rows), empty(rows), empty(rows)
    high, low = (empty(split * _PADDING if part < parts else 0, dtype=torch.float16) for part in range(2))
    kernel.split_kernel[(split_tiles,)](
        packed, starts, inverse, column, cosine, scale, high, low, len(matrices), columns, PARTS=parts, BLOCK_N=_SPLIT_ROWS,
        BLOCK_D=min(_SPLIT_VALUES, wide["BLOCK_D"]), **common,
    )  # fmt: skip
    kernel.square_kernel[(square_tiles,)](
        starts, scale, high, low, square, len(matrices), PARTS=parts, BLOCK=_SQUARES.block, BLOCK_K=tiling.depth,
        num_warps=_SQUARES.warps, num_stages=_SQUARES.stages, **common,
    )  # fmt: skip

    slots = min(tiling.slots, _ceil(max(shapes)[0], tiling.block))
    total, nearest, neighbour = empty(slots, rows), empty(slots, rows), empty(slots, rows, dtype=torch.int32)
    kernel.pair_kernel[(tiles,)](
        starts, scale, square, high, low, total, nearest, neighbour, len(matrices), rows, PARTS=parts, BLOCK=tiling.block,
        BLOCK_K=tiling.depth, SLOTS=tiling.slots, num_warps=tiling.warps, num_stages=tiling.stages, **common,
    )  # fmt: skip
    euclidean, exact, found = empty(rows), empty(rows), empty(rows, dtype=torch.int64)
    kernel.finish_kernel[(rows,)](
        packed, starts, total, nearest, neighbour, euclidean, found, exact, len(matrices), rows, BLOCK=tiling.block,
        SLOTS=tiling.slots, **wide,
    )  # fmt: skip
    return euclidean, cosine, found, exact


def _counts(shapes: list[tuple[int, int]], tiling: Tiling) -> list[list[int]]:
    """What each matrix takes of each unit that ``kernel`` counts in, in its order."""
    return [
        [rows * length for rows, length in shapes],
        [rows for rows, _ in shapes],
        [length for _, length in shapes],
        [rows * _ceil(length, _PADDING) for rows, length in shapes],
        [_ceil(length, _COLUMNS_EACH) for _, length in shapes],
        [_tiles(_ceil(rows, tiling.block), tiling.slots) for rows, _ in shapes],
        [_ceil(rows, _SQUARES.block) for rows, _ in shapes],
        [_ceil(rows, _SPLIT_ROWS) for rows, _ in shapes],
    ]


def _tiles(blocks: int, slots: int) -> int:
    """Programs for the pairs of so many blocks of rows."""
    runs = _ceil(blocks, _ceil(blocks, slots))
    side = min(runs, _GROUP)
    return side * side * math.comb(_ceil(runs, side) + 1, 2)


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _power_of_two(size: int) -> int:
    """The smallest that is not less."""
    return 1 << (size - 1).bit_length()
