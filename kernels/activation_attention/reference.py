"""Statistics of activations in plain PyTorch: what runs on a CPU, and what the tests hold the kernel against.

The tensor is read once, in blocks that stay in a cache: each block is copied to a contiguous buffer (which also widens half
precision) and every statistic is taken from there. Sums are of the accumulation type within a block and of float64 across
blocks. A block follows the order of the tensor in memory, so that any layout is read at its best and none is copied whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

# Elements of a block. In float32, the block and a scratch copy take 2 MiB: in cache, and long against the cost of a call.
BLOCK = 1 << 18

# Rows that are narrower than this are reduced side by side.
_FOLD = 64

# Rows of the sums that both functions return, in this order.
SUMS = ("sum", "abs_sum", "square_sum", "fourth_sum", "abs_max", "taylor_abs")
_MAXIMUM = SUMS.index("abs_max")


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type that sums of a dtype are taken in: float32, or float64 for float64."""
    return torch.promote_types(dtype, torch.float32)


def statistics(activation: Tensor, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Per-channel statistics of an activation.

    Args:
        activation: Floating point, ``[N, ..., C, ...]`` with the channels at ``channel_dim``; any layout.
        channel_dim: From 1 to ``activation.ndim - 1``.

    Returns:
        ``[5, C]``, the first five rows of ``SUMS`` in the accumulation type, and ``[C]`` int64, the non-zero values.
    """
    blocks = _Blocks(activation, channel_dim)
    totals = _Totals(activation, len(SUMS) - 1, blocks.channels)
    for index in blocks:
        totals.add(index[blocks.axis], _statistics(blocks.load(activation, index), blocks.scratch))
    return totals.results()


def statistics_with_gradient(
    activation: Tensor, gradient: Tensor, tau: float | None, channel_dim: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same statistics, and those of activation times gradient, with each of the two read once.

    Args:
        activation: As for ``statistics``.
        gradient: Of the loss by the activation; its shape and dtype, in any layout.
        tau: Where given, positions with ``|a * g| > tau`` are counted.
        channel_dim: As for ``statistics``.

    Returns:
        ``[6, C]``, all rows of ``SUMS``; ``[C]`` int64, the non-zero activations; ``[N, C]``, per sample and channel the
        sum of ``a * g``; and int32 ``[C, *spatial]``, the samples above ``tau`` (of no elements where it is not given).
    """
    blocks = _Blocks(activation, channel_dim)
    totals = _Totals(activation, len(SUMS), blocks.channels)
    taylor = activation.new_zeros((activation.shape[0], blocks.channels), dtype=torch.float64)
    indicator = activation.new_zeros(activation.movedim(channel_dim, 1).shape[1:] if tau is not None else 0, dtype=torch.int32)
    placed = indicator.permute([dim - 1 for dim in blocks.order[1:]]) if tau is not None else indicator
    products = torch.empty_like(blocks.buffer)
    for index in blocks:
        samples, channels = index[0], index[blocks.axis]
        values = blocks.load(activation, index)
        term = blocks.load(gradient, index, products).mul_(values)
        per_sample = term.view(samples.stop - samples.start, -1, *values.shape[1:])
        taylor[samples, channels] += _reduce(torch.sum, per_sample, 1)
        rows = _statistics(values, blocks.scratch)
        totals.add(channels, [*rows, _reduce(torch.sum, term.abs_())])
        if tau is not None:
            above = torch.gt(term, tau, out=blocks.scratch[: term.numel()].view_as(term))
            placed[index[1:]] += above.view(len(per_sample), *placed[index[1:]].shape).sum(0).to(torch.int32)
    return *totals.results(), taylor.to(accumulator(activation.dtype)), indicator


class _Blocks:
    """The pieces that a tensor is read in, as indices into its view in the order of memory (samples stay first)."""

    def __init__(self, tensor: Tensor, channel_dim: int) -> None:
        moved = [0, channel_dim, *(dim for dim in range(1, tensor.ndim) if dim != channel_dim)]
        # Dimensions of [N, C, *spatial], from the slowest to the fastest.
        self.order = [0, *sorted(range(1, tensor.ndim), key=lambda dim: -tensor.stride(moved[dim]))]
        self.axis = self.order.index(1)
        self.permutation = [moved[dim] for dim in self.order]
        self.shape = [tensor.shape[dim] for dim in self.permutation]
        self.channels = self.shape[self.axis]
        self.buffer = tensor.new_empty(min(BLOCK, tensor.numel()), dtype=accumulator(tensor.dtype))
        self.scratch = torch.empty_like(self.buffer)

    def __iter__(self) -> Iterator[tuple[slice, ...]]:
        ranges, rest = [], torch.Size(self.shape).numel()
        for size in self.shape:
            rest = max(1, rest // max(1, size))
            step = max(1, BLOCK // rest)
            ranges.append([slice(start, min(start + step, size)) for start in range(0, size, step)])
        return iter(product(*ranges))

    def load(self, tensor: Tensor, index: tuple[slice, ...], buffer: Tensor | None = None) -> Tensor:
        """A block as ``[outer, channels, inner]``, copied to a buffer."""
        source = tensor.permute(self.permutation)[index]
        target = (self.buffer if buffer is None else buffer)[: source.numel()]
        target.view(source.shape).copy_(source)
        return target.view(-1, source.shape[self.axis], source.shape[self.axis + 1 :].numel())


class _Totals:
    """Statistics of the blocks so far, in float64; the last row counts the values that are not zero."""

    def __init__(self, like: Tensor, rows: int, channels: int) -> None:
        self.dtype = accumulator(like.dtype)
        self.sums = like.new_zeros((rows + 1, channels), dtype=torch.float64)

    def add(self, channels: slice, rows: list[Tensor]) -> None:
        """Add the statistics of a block, each ``[channels]``: the count first, then the rows of ``SUMS``."""
        nonzero, *sums = rows
        part, total = torch.stack([*sums, nonzero]), self.sums[:, channels]
        largest = torch.maximum(total[_MAXIMUM], part[_MAXIMUM])
        total += part
        total[_MAXIMUM] = largest

    def results(self) -> tuple[Tensor, Tensor]:
        """The sums in the accumulation type, and the count."""
        return self.sums[:-1].to(self.dtype), self.sums[-1].to(torch.int64)


def _statistics(values: Tensor, scratch: Tensor) -> list[Tensor]:
    """The count of a block ``[outer, channels, inner]`` and its first five sums. Its values are overwritten."""
    other = scratch[: values.numel()].view_as(values)
    nonzero = _reduce(torch.sum, torch.ne(values, 0, out=other))
    total = _reduce(torch.sum, values)
    absolute = _reduce(torch.sum, values.abs_())
    largest = _reduce(torch.amax, values)
    square = _reduce(torch.sum, values.mul_(values))
    fourth = _reduce(torch.sum, values.mul_(values))
    return [nonzero, total, absolute, square, fourth, largest]


def _reduce(operation: Callable[[Tensor, int], Tensor], block: Tensor, outer: int = 0) -> Tensor:
    """Reduce the outer dimension first: over it, one instruction serves many neighbours, where there are many."""
    fold = math.gcd(block.shape[outer], _FOLD)
    if fold > 1 and block.shape[outer:].numel() // block.shape[outer] < _FOLD:
        block = operation(block.unflatten(outer, (-1, fold)), outer)
    reduced = block.shape[outer] > 1
    block = operation(block, outer) if reduced else block.select(outer, 0)
    # Not a view of the block, which is overwritten.
    return block.select(-1, 0) if reduced and block.shape[-1] == 1 else operation(block, -1)
