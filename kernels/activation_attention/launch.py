"""How the statistics of activations are put on a GPU: what a layout merges to, how it is cut up, and the two launches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from graphprune.kernels.activation_attention.kernel import channels_kernel, gradient_kernel, inner_kernel, merge_kernel
from graphprune.kernels.activation_attention.reference import statistics, statistics_with_gradient


@dataclass(frozen=True)
class Tiling:
    """How a launch is cut up."""

    loads: int
    """Of each thread for a tile, a power of two."""
    contiguous: int
    """Longest side of a tile along contiguous memory, likewise."""
    warps: int
    stages: int
    """Tiles that are on their way at a time."""
    programs: int
    """For each multiprocessor: as many as run on it at once, since of a few more the second turn leaves most of it idle."""
    tiles: int = 1
    """Of a program, at least: where there are fewer, fewer programs share a channel."""

    def elements(self, load: int) -> int:
        """Of a tile, where loads are of so many."""
        return self.warps * _WARP * load * self.loads


# From sweeps on an NVIDIA H200.
ALONG_INNER = Tiling(loads=4, contiguous=1024, warps=4, stages=4, programs=4, tiles=16)
ALONG_CHANNELS = Tiling(loads=4, contiguous=64, warps=4, stages=4, programs=4)
GRADIENT = Tiling(loads=4, contiguous=64, warps=1, stages=3, programs=10)

_MERGED_CHANNELS, _MERGED_PROGRAMS = 16, 128  # of the partial sums that a program adds up at a time
_INT32 = 2**31 - 1
_ALIGNMENT = 16  # more elements than the widest load holds
_LOAD = 16  # bytes of the widest load
_WARP = 32
_WORD = 4  # bytes: loads of no more are narrow
_NARROW = 4  # where they are, warps are so many times fewer, and have so many times as many loads


def launch(activation: Tensor, channel_dim: int, tiling: Tiling | None = None) -> tuple[Tensor, Tensor]:
    """As ``reference.statistics``, for float32, float16 and bfloat16."""
    shape, strides = tuple(activation.shape), activation.stride()
    plan = _plan(shape, strides, _load(activation), activation.dtype, channel_dim, _processors(activation), tiling)
    if plan is None:
        return statistics(activation, channel_dim)
    partial, count = _workspace(activation, plan, 5)
    kernel = inner_kernel if plan.along_inner else channels_kernel
    kernel[plan.grid](activation, partial, count, *plan.sizes, **plan.constants)
    return _merged(partial, count)


def launch_with_gradient(
    activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int, tiling: Tiling | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As ``reference.statistics_with_gradient``, for float32, float16 and bfloat16."""
    shape, strides = tuple(activation.shape), (activation.stride(), gradient.stride())
    load = min(_load(activation), _load(gradient))
    plan = _gradient_plan(shape, strides, load, channel_dim, tau is not None, _processors(activation), tiling)
    if plan is None:
        return statistics_with_gradient(activation, gradient, tau, channel_dim)
    partial, count = _workspace(activation, plan, 6)
    spatial = [size for dim, size in enumerate(shape) if dim not in (0, channel_dim)]
    kept = (plan.channels, *spatial) if tau is not None else (0,)
    indicator = torch.zeros(kept, dtype=torch.int32, device=activation.device)
    taylor = torch.empty((plan.tiles, shape[0], plan.channels), dtype=torch.float32, device=activation.device)
    gradient_kernel[plan.grid](activation, gradient, partial, count, taylor, indicator, tau or 0.0, *plan.sizes, **plan.constants)
    return *_merged(partial, count), taylor[0] if plan.tiles == 1 else taylor.sum(0), indicator


@dataclass(frozen=True)
class _Plan:
    """A launch, but for its tensors."""

    grid: tuple[int, int]
    channels: int
    tiles: int
    sizes: tuple[int, ...]
    constants: dict[str, Any]
    along_inner: bool
    """Whether the innermost reduced dimension lies closer in memory than the channels."""


@lru_cache(maxsize=4096)
def _plan(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    load: int,
    dtype: torch.dtype,
    channel_dim: int,
    processors: int,
    tiling: Tiling | None,
) -> _Plan | None:
    """The launch for an activation, or nothing where the kernels have no dimensions enough."""
    reduced = [dim for dim in range(len(shape)) if dim != channel_dim]
    sizes, (steps,) = merge([shape[dim] for dim in reduced], [[strides[dim] for dim in reduced]])
    if 0 in shape or len(sizes) > 4:
        return None
    channels, stride_c = shape[channel_dim], strides[channel_dim]
    (*outer, inner), (*outer_steps, stride_i) = sizes, steps
    align = math.gcd(_ALIGNMENT, *outer_steps, *(stride for stride in (stride_c, stride_i) if stride != 1))
    rows, along_inner = math.prod(outer), stride_i < stride_c and inner > 1
    tiling = tiling or (ALONG_INNER if along_inner else ALONG_CHANNELS)
    load = math.gcd(load, align)
    tile: _InnerTile | _Tile
    if along_inner:
        tile = _InnerTile(channels, rows, inner, stride_i, load, dtype.itemsize, tiling)
        tiles = _ceil(rows, tile.block_r) * tile.across
        counts = channels, inner // tile.i_align
    else:
        tile = _Tile(channels, stride_c, inner, stride_i, load, tiling)
        tiles = rows * tile.across
        counts = channels // tile.c_align, inner
    programs = max(1, tile.tiling.programs * processors // tile.groups)
    each = max(_ceil(tiles, programs), min(tiles, tiling.tiles))
    steps = [stride // align for stride in (stride_c, stride_i, *_padded(outer_steps, 3))]
    arguments = *counts, rows, *[*outer, 1, 1, 1][1:3], *steps, each
    constants = tile.constants() | {"ALIGN": align, "DIMS": max(1, len(outer)), "WIDE": inner > _INT32 // 2}
    constants |= {"I_UNIT": stride_i == 1} if along_inner else {"C_UNIT": stride_c == 1}
    constants |= {"PAIRS": dtype == torch.bfloat16 and tile.load > 1}
    return _Plan((tile.groups, _ceil(tiles, each)), channels, tiles, arguments, constants, along_inner)


@lru_cache(maxsize=4096)
def _gradient_plan(
    shape: tuple[int, ...],
    strides: tuple[tuple[int, ...], tuple[int, ...]],
    load: int,
    channel_dim: int,
    counted: bool,
    processors: int,
    tiling: Tiling | None,
) -> _Plan | None:
    """The launch for an activation and its gradient; counted is whether there is an indicator."""
    samples, channels = shape[0], shape[channel_dim]
    dims = [dim for dim in range(1, len(shape)) if dim != channel_dim]
    spatial = [shape[dim] for dim in dims]
    k_strides = [math.prod(spatial[dim:]) if counted else 0 for dim in range(len(spatial) + 1)]
    x, g = ([stride[0], stride[channel_dim], *(stride[dim] for dim in dims)] for stride in strides)
    sizes, (x_steps, g_steps, (*k_outer, k_inner)) = merge(spatial, [x[2:], g[2:], k_strides[1:]])
    if 0 in shape or len(sizes) > 3 or sizes[-1] > _INT32 // 2:
        return None
    *outer, inner = sizes
    along_inner = x_steps[-1] < x[1] and inner > 1
    tiling = tiling or GRADIENT
    x_align, x_divided = _divided(x, x_steps)
    g_align, g_divided = _divided(g, g_steps)
    tile = _Tile(channels, x[1], inner, x_steps[-1], math.gcd(load, x_align, g_align), tiling)
    positions = math.prod(outer)
    tiles = positions * tile.across
    workers = _ceil(tiling.programs * processors, tile.groups)
    chunks, each = _shared_out(samples, tiles, workers)
    programs = _ceil(tiles * chunks, each)
    arguments = samples, channels // tile.c_align, inner // tile.i_align, positions, [*outer, 1, 1][1], chunks, each
    constants = tile.constants() | {"X_ALIGN": x_align, "G_ALIGN": g_align, "COUNT": counted, "DIMS": max(1, len(outer))}
    constants |= {"X_C_UNIT": x[1] == 1, "X_I_UNIT": x_steps[-1] == 1, "G_C_UNIT": g[1] == 1, "G_I_UNIT": g_steps[-1] == 1}
    kept = k_strides[0], k_inner, *_padded(k_outer, 2)
    constants |= {"I_ALIGN": tile.i_align, "ALONG_I": along_inner}
    return _Plan((tile.groups, programs), channels, tiles, (*arguments, *x_divided, *g_divided, *kept), constants, along_inner)


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


class _InnerTile:
    """The tile of a launch over ``[rows, inner]`` of one channel."""

    def __init__(self, channels: int, rows: int, inner: int, stride_i: int, load: int, itemsize: int, tiling: Tiling) -> None:
        self.i_align = math.gcd(_ALIGNMENT, inner) if stride_i == 1 else 1
        self.load = math.gcd(load, self.i_align)
        if self.load * itemsize <= _WORD:
            fewer = math.gcd(tiling.warps, _NARROW)
            tiling = replace(
                tiling, loads=tiling.loads * fewer, warps=tiling.warps // fewer, programs=tiling.programs * fewer,
                stages=1 if itemsize < _WORD else tiling.stages,  # the way by shared memory takes longer than it hides
            )  # fmt: skip
        self.tiling, self.groups = tiling, channels
        self.block_i = _side(inner, tiling.contiguous)
        self.block_r = min(_power_of_two(rows), max(1, tiling.elements(self.load) // self.block_i))
        self.across = _ceil(inner, self.block_i)
        self.full = rows % self.block_r == 0 and inner % self.block_i == 0

    def constants(self) -> dict[str, Any]:
        """What the kernel is compiled for."""
        shape = {"BLOCK_R": self.block_r, "BLOCK_I": self.block_i, "FULL": self.full, "I_ALIGN": self.i_align}
        return shape | {"FOLD": min(self.load, self.block_i), "STAGES": self.tiling.stages, "num_warps": self.tiling.warps}


class _Tile:
    """The tile of a launch over ``[channels, inner]``, and what its shape says to the compiler."""

    def __init__(self, channels: int, stride_c: int, inner: int, stride_i: int, load: int, tiling: Tiling) -> None:
        self.tiling = tiling
        along_inner = stride_i < stride_c and inner > 1
        # A mask that is the same for a whole load, and strides that keep it aligned, let the load be wide.
        self.c_align = math.gcd(_ALIGNMENT, channels) if stride_c == 1 else 1
        self.i_align = math.gcd(_ALIGNMENT, inner) if stride_i == 1 else 1
        self.load = math.gcd(load, self.i_align if along_inner else self.c_align)
        longest = _side(inner if along_inner else channels, tiling.contiguous)
        other = min(_power_of_two(channels if along_inner else inner), max(1, tiling.elements(self.load) // longest))
        self.block_c, self.block_i = (other, longest) if along_inner else (longest, other)
        self.across, self.groups = _ceil(inner, self.block_i), _ceil(channels, self.block_c)
        self.full = channels % self.block_c == 0 and inner % self.block_i == 0
        # What a thread holds of a channel: a load along the inner dimension, or every so many locations across it.
        beside = max(1, tiling.warps * _WARP * self.load // self.block_c)
        self.fold = min(self.load, self.block_i) if along_inner else max(1, self.block_i // beside)

    def constants(self) -> dict[str, Any]:
        """What a kernel is compiled for."""
        shape = {"BLOCK_C": self.block_c, "BLOCK_I": self.block_i, "FULL": self.full, "C_ALIGN": self.c_align}
        return shape | {"FOLD": self.fold, "STAGES": self.tiling.stages, "num_warps": self.tiling.warps}


def _shared_out(samples: int, tiles: int, workers: int) -> tuple[int, int]:
    """Chunks of the samples, and items (a tile and a chunk) of each worker, that leave the fewest workers idle."""
    options = []
    for each in range(1, 9):
        share = _ceil(samples, min(samples, max(1, each * workers // tiles)))
        chunks = _ceil(samples, share)
        items = _ceil(tiles * chunks, workers)
        options.append((samples * tiles / (items * share * workers), -items, chunks))
    _, items, chunks = max(options)
    return chunks, -items


def _side(size: int, longest: int) -> int:
    """The power of two, of the longest and its half and quarter, that wastes least; of two that are equal, the longer."""
    candidates = [longest >> shift for shift in range(3) if longest >> shift < 2 * size]
    return min(candidates, key=lambda side: _ceil(size, side) * side, default=_power_of_two(size))


def _divided(strides: list[int], spatial: list[int]) -> tuple[int, list[int]]:
    """The alignment of a tensor ``[N, C, *spatial]``, and its strides (N, C, inner and outer) divided by that."""
    *outer, inner = spatial
    strides = [*strides[:2], inner, *_padded(outer, 2)]
    # Where channels or the inner dimension are contiguous, the kernel knows it and needs no factor.
    align = math.gcd(_ALIGNMENT, strides[0], *(stride for stride in strides[1:3] if stride != 1), *strides[3:])
    return align, [stride // align for stride in strides]


def _padded(strides: Sequence[int], count: int) -> list[int]:
    return [*strides, *[0] * (count - len(strides))]


def _workspace(like: Tensor, plan: _Plan, rows: int) -> tuple[Tensor, Tensor]:
    """Sums and counts of each program; of one alone, they are the results."""
    programs = plan.grid[1]
    partial = torch.empty((programs, rows, plan.channels), dtype=torch.float32, device=like.device)
    return partial, torch.empty((programs, plan.channels), dtype=torch.int64 if programs == 1 else torch.int32, device=like.device)


def _merged(partial: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """The sums and the count over all programs."""
    programs, rows, channels = partial.shape
    if programs == 1:
        return partial[0], count[0]
    sums = torch.empty((rows, channels), dtype=torch.float32, device=partial.device)
    nonzero = torch.empty(channels, dtype=torch.int64, device=partial.device)
    beside = min(_power_of_two(programs), _MERGED_PROGRAMS)
    merge_kernel[(_ceil(channels, _MERGED_CHANNELS), rows + 1)](
        partial, count, sums, nonzero, channels, programs, STATS=rows, BLOCK_C=_MERGED_CHANNELS, BLOCK_P=beside
    )
    return sums, nonzero


def _load(tensor: Tensor) -> int:
    """Elements of the widest load that a tensor's memory is aligned for."""
    return _LOAD // tensor.itemsize if tensor.data_ptr() % _LOAD == 0 else 1


def _processors(tensor: Tensor) -> int:
    """Multiprocessors of a GPU; one where the kernels are interpreted on a CPU."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1


def _ceil(size: int, step: int) -> int:
    return -(-size // step)


def _power_of_two(size: int) -> int:
    """The smallest that is not less."""
    return 1 << (size - 1).bit_length()
