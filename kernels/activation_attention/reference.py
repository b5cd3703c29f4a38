"""Statistics of activations in plain PyTorch: what runs on a CPU, and what the tests hold the kernel against.

The tensor is read once, in blocks that stay in a cache, and every statistic is taken from there. A block follows the order of the
tensor in memory, so that any layout is read at its best. It is read where it lies; only half precision and views with gaps are
copied, block by block. Sums are of the accumulation type within a block and of float64 across blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import torch
from torch import Tensor

# Elements of a block: 2 MiB in float32, and as much for what is computed from it. In cache, and long against the cost of a call.
BLOCK = 1 << 19

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
    parts = []
    for index in blocks:
        sums, nonzero = _statistics(blocks.load(activation, index, blocks.buffer), blocks.scratch)
        parts.append((index[blocks.axis], torch.stack(sums), nonzero))
    return _merged(parts, blocks.buffer, len(SUMS) - 1, blocks.channels)


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
    parts = []
    taylor = activation.new_zeros((activation.shape[0], blocks.channels), dtype=torch.float64)
    indicator = activation.new_zeros(activation.movedim(channel_dim, 1).shape[1:] if tau is not None else 0, dtype=torch.int32)
    placed = indicator.permute([dim - 1 for dim in blocks.order[1:]]) if tau is not None else indicator
    products = torch.empty_like(blocks.buffer)
    for index in blocks:
        samples, channels = index[0], index[blocks.axis]
        values = blocks.load(activation, index, blocks.buffer)
        term = products[: values.numel()].view_as(values)
        torch.mul(values, blocks.load(gradient, index, products), out=term)
        per_sample = term.view(samples.stop - samples.start, -1, *values.shape[1:])
        taylor[samples, channels] += _reduce(torch.sum, per_sample, 1)
        sums, nonzero = _statistics(values, blocks.scratch)
        parts.append((channels, torch.stack([*sums, _reduce(torch.sum, term.abs_())]), nonzero))
        if tau is not None:
            above = torch.gt(term, tau, out=blocks.scratch[: term.numel()].view_as(term))
            placed[index[1:]] += above.view(len(per_sample), *placed[index[1:]].shape).sum(0).to(torch.int32)
    merged = _merged(parts, blocks.buffer, len(SUMS), blocks.channels)
    return *merged, taylor.to(accumulator(activation.dtype)), indicator


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

    def load(self, tensor: Tensor, index: tuple[slice, ...], buffer: Tensor) -> Tensor:
        """A block as ``[outer, channels, inner]``: as it lies where that will do, else copied to a buffer."""
        source = tensor.permute(self.permutation)[index]
        if source.dtype != buffer.dtype or not source.is_contiguous():
            source = buffer[: source.numel()].view(source.shape).copy_(source)
        return source.view(-1, source.shape[self.axis], source.shape[self.axis + 1 :].numel())


def _statistics(values: Tensor, scratch: Tensor) -> tuple[list[Tensor], Tensor]:
    """The first five sums of a block ``[outer, channels, inner]``, and the count of what is not zero; ``[channels]`` each."""
    other = scratch[: values.numel()].view_as(values)
    nonzero = _reduce(torch.sum, torch.ne(values, 0, out=other))
    total = absolute = _reduce(torch.sum, values)
    sizes = values
    if not float(values.min()) >= 0:  # else absolute values already, as after a ReLU; NaN is not
        sizes = torch.abs(values, out=other)
        absolute = _reduce(torch.sum, sizes)
    largest = _reduce(torch.amax, sizes)
    square = _reduce(torch.sum, torch.mul(values, values, out=other))
    fourth = _reduce(torch.sum, other.mul_(other))
    return [total, absolute, square, fourth, largest], nonzero


def _merged(parts: list[tuple[slice, Tensor, Tensor]], like: Tensor, rows: int, channels: int) -> tuple[Tensor, Tensor]:
    """The statistics of all blocks: of each its channels, the sums ``[rows, channels]`` of these, and the count ``[channels]``."""
    if len(parts) == 1:
        _, sums, nonzero = parts[0]
    else:
        sums = like.new_zeros((rows, channels), dtype=torch.float64)
        nonzero = like.new_zeros(channels, dtype=torch.float64)
        for where, part, count in parts:
            known = sums[:, where]
            largest = torch.maximum(known[_MAXIMUM], part[_MAXIMUM])
            known.add_(part)[_MAXIMUM] = largest
            nonzero[where] += count
    return sums.to(like.dtype), nonzero.to(torch.int64)


def _reduce(operation: Callable[[Tensor, tuple[int, ...]], Tensor], block: Tensor, outer: int = 0) -> Tensor:
    """Reduce the outer dimension and the last one; the outer one first where the last is short, since one instruction then
    serves many neighbours."""
    fold = math.gcd(block.shape[outer], _FOLD)
    if fold > 1 and block.shape[outer:].numel() // block.shape[outer] < _FOLD:
        block = operation(block.unflatten(outer, (-1, fold)), (outer,))
    if block.shape[outer] > 1 < block.shape[-1] < _FOLD:
        return operation(operation(block, (outer,)), (-1,))
    return operation(block, (outer, -1))
