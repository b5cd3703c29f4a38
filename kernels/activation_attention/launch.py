"""How the statistics of activations are put on a GPU: what a layout merges to, how it is cut up, and the two launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphprune.kernels.activation_attention.kernel import gradient_kernel, statistics_kernel
from graphprune.kernels.activation_attention.reference import statistics, statistics_with_gradient


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut up."""

    elements: int
    """Of a tile, which is a power of two."""
    contiguous: int
    """Longest side of a tile along contiguous memory, likewise."""
    warps: int
    unroll: int
    programs: int
    """For each multiprocessor."""


# Each was the fastest, or within the noise of it, of those that were measured on an NVIDIA H200.
ALONG_INNER = Tiling(elements=2048, contiguous=256, warps=8, unroll=4, programs=8)
ALONG_CHANNELS = Tiling(elements=2048, contiguous=128, warps=8, unroll=4, programs=8)
GRADIENT_ALONG_INNER = Tiling(elements=1024, contiguous=128, warps=4, unroll=2, programs=16)
GRADIENT_ALONG_CHANNELS = Tiling(elements=256, contiguous=128, warps=1, unroll=2, programs=32)

_MERGED = 4096  # partial sums that the last program adds up at a time
_INT32 = 2**31 - 1
_ALIGNMENT = 16  # more elements than the widest load holds


def launch(activation: Tensor, channel_dim: int, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
    """As ``reference.statistics``, for float32, float16 and bfloat16."""
    moved = activation.movedim(channel_dim, 1)
    reduced = [0, *range(2, moved.ndim)]
    sizes, (strides,) = merge([moved.shape[dim] for dim in reduced], [[moved.stride(dim) for dim in reduced]])
    if activation.numel() == 0 or len(sizes) > 4:
        return statistics(activation, channel_dim)
    channels, stride_c = moved.shape[1], moved.stride(1)
    *outer, inner = sizes
    *outer_strides, stride_i = strides
    tile = _Tile(channels, stride_c, inner, stride_i, tiling or (ALONG_INNER if stride_i < stride_c else ALONG_CHANNELS))
    align = math.gcd(_ALIGNMENT, *outer_strides, *tile.uneven)

    rows, tiles = math.prod(outer), math.prod(outer) * tile.across
    each = _ceil(tiles, _ceil(tile.tiling.programs * _processors(activation), tile.groups))
    programs = _ceil(tiles, each)
    partial, count, arrived, sums, nonzero = _workspace(activation, programs, 5, tile)
    _, size_1, size_2 = [*outer, 1, 1, 1][:3]
    statistics_kernel[(tile.groups, programs)](
        activation, partial, count, arrived, sums, nonzero,
        channels // tile.c_align, inner // tile.i_align, rows, size_1, size_2,
        *(stride // align for stride in (stride_c, stride_i, *_padded(outer_strides, 3))), programs, each,
        ALIGN=align, C_ALIGN=tile.c_align, I_ALIGN=tile.i_align, C_UNIT=stride_c == 1, I_UNIT=stride_i == 1,
        DIMS=max(1, len(outer)), FULL=tile.full, BLOCK_C=tile.block_c, BLOCK_I=tile.block_i, BLOCK_P=tile.merged(programs),
        UNROLL=tile.tiling.unroll, WIDE=inner > _INT32 // 2, num_warps=tile.tiling.warps,
    )  # fmt: skip
    return sums, nonzero


def launch_with_gradient(
    activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.statistics_with_gradient``, for float32, float16 and bfloat16."""
    x, g = activation.movedim(channel_dim, 1), gradient.movedim(channel_dim, 1)
    samples, channels, *spatial = x.shape
    indicator = x.new_zeros((channels, *spatial) if tau is not None else 0, dtype=torch.int32)
    k_strides = indicator.stride() if tau is not None else (0,) * (1 + len(spatial))
    sizes, (x_strides, g_strides, (*k_outer, k_inner)) = merge(spatial, [x.stride()[2:], g.stride()[2:], k_strides[1:]])
    if activation.numel() == 0 or len(sizes) > 3 or sizes[-1] > _INT32 // 2:
        return statistics_with_gradient(activation, gradient, tau, channel_dim)
    *outer, inner = sizes
    along_inner = x_strides[-1] < x.stride(1) and inner > 1
    tile = _Tile(
        channels, x.stride(1), inner, x_strides[-1], tiling or (GRADIENT_ALONG_INNER if along_inner else GRADIENT_ALONG_CHANNELS)
    )
    x_align, x_steps = _divided(x, x_strides)
    g_align, g_steps = _divided(g, g_strides)

    positions = math.prod(outer)
    tiles = positions * tile.across
    each = _ceil(samples, _ceil(tile.tiling.programs * _processors(activation), tiles * tile.groups))
    chunks = _ceil(samples, each)
    partial, count, arrived, sums, nonzero = _workspace(activation, tiles * chunks, 6, tile)
    taylor = torch.empty((tiles, samples, channels), dtype=torch.float32, device=activation.device)
    gradient_kernel[(tiles * tile.groups * chunks,)](
        activation, gradient, partial, count, arrived, sums, nonzero, taylor, indicator, tau or 0.0,
        samples, channels // tile.c_align, inner // tile.i_align, positions, [*outer, 1, 1][1], each, tiles * chunks,
        *x_steps, *g_steps, k_strides[0], k_inner, *_padded(k_outer, 2),
        X_ALIGN=x_align, G_ALIGN=g_align, C_ALIGN=tile.c_align, I_ALIGN=tile.i_align,
        X_C_UNIT=x.stride(1) == 1, X_I_UNIT=x_strides[-1] == 1, G_C_UNIT=g.stride(1) == 1, G_I_UNIT=g_strides[-1] == 1,
        DIMS=max(1, len(outer)), FULL=tile.full, COUNT=tau is not None, BLOCK_C=tile.block_c, BLOCK_I=tile.block_i,
        BLOCK_P=tile.merged(tiles * chunks), UNROLL=tile.tiling.unroll, num_warps=tile.tiling.warps,
    )  # fmt: skip
    return sums, nonzero, taylor[0] if tiles == 1 else taylor.sum(0), indicator


def merge(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """Merge dimensions that lie evenly in every tensor.

    Args:
        sizes: Of the dimensions.
        strides: Of each tensor, in elements.

    Returns:
        The fewest sizes, and strides of each tensor, that visit the same elements, from the slowest dimension of the first
        tensor to its fastest; at least one.
    """
    order = sorted((dim for dim in range(len(sizes)) if sizes[dim] != 1), key=lambda dim: -strides[0][dim])
    merged: list[int] = []
    steps: list[list[int]] = []
    for dim in order:
        step = [stride[dim] for stride in strides]
        if merged and all(last == size * sizes[dim] for last, size in zip(steps[-1], step, strict=True)):
            merged[-1], steps[-1] = merged[-1] * sizes[dim], step
        else:
            merged.append(sizes[dim])
            steps.append(step)
    if not merged:
        return [1], [[1] for _ in strides]
    return merged, [list(stride) for stride in zip(*steps, strict=True)]


class _Tile:
    """The tile of a launch over ``[channels, inner]``, and what its shape says to the compiler."""

    def __init__(self, channels: int, stride_c: int, inner: int, stride_i: int, tiling: Tiling) -> None:
        along_inner = stride_i < stride_c and inner > 1
        longest = _side(inner if along_inner else channels, tiling.contiguous)
        other = min(_power_of_two(channels if along_inner else inner), max(1, tiling.elements // longest))
        self.tiling, self.channels = tiling, channels
        self.block_c, self.block_i = (other, longest) if along_inner else (longest, other)
        self.across = _ceil(inner, self.block_i)
        self.groups = _ceil(channels, self.block_c)
        self.full = channels % self.block_c == 0 and inner % self.block_i == 0
        # A mask that is the same for a whole load, and strides that keep it aligned, let the load be wide.
        self.c_align = math.gcd(_ALIGNMENT, channels) if stride_c == 1 else 1
        self.i_align = math.gcd(_ALIGNMENT, inner) if stride_i == 1 else 1
        self.uneven = [stride for stride in (stride_c, stride_i) if stride != 1]

    def merged(self, programs: int) -> int:
        """Partial sums of a channel that the last program adds up at a time."""
        return min(_power_of_two(programs), max(1, _MERGED // self.block_c))


def _side(size: int, longest: int) -> int:
    """The power of two that wastes least, from an eighth of the longest on; of two that are equal, the longer."""
    candidates = [longest >> shift for shift in range(3) if longest >> shift < 2 * size]
    return min(candidates, key=lambda side: _ceil(size, side) * side, default=(_power_of_two(size)))


def _divided(moved: Tensor, spatial: list[int]) -> tuple[int, list[int]]:
    """The alignment of a tensor ``[N, C, *spatial]``, and its strides (N, C, inner and outer) divided by that."""
    *outer, inner = spatial
    strides = [moved.stride(0), moved.stride(1), inner, *_padded(outer, 2)]
    # Where channels or the inner dimension are contiguous, the kernel knows it and needs no factor.
    align = math.gcd(_ALIGNMENT, strides[0], *(stride for stride in strides[1:3] if stride != 1), *strides[3:])
    return align, [stride // align for stride in strides]


def _padded(strides: Sequence[int], count: int) -> list[int]:
    return [*strides, *[0] * (count - len(strides))]


def _workspace(like: Tensor, programs: int, rows: int, tile: _Tile) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Partial sums and counts of each program, arrivals at each group of channels, and the results."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=like.device)

    partial, count = empty(programs, rows, tile.channels), empty(programs, tile.channels, dtype=torch.int32)
    arrived = torch.zeros(tile.groups, dtype=torch.int32, device=like.device)
    return partial, count, arrived, empty(rows, tile.channels), empty(tile.channels, dtype=torch.int64)


def _processors(tensor: Tensor) -> int:
    """Multiprocessors of a GPU; one where the kernels are interpreted on a CPU."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _power_of_two(size: int) -> int:
    """The smallest that is not less."""
    return 1 << (size - 1).bit_length()
