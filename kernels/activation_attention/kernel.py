"""Triton kernels for the statistics of activations: one read of each tensor, whatever its layout.

Dimensions that lie evenly in memory are merged first, so that a tensor is ``[rows, channels, inner]`` with the innermost
reduced dimension apart. Which of the last two is contiguous decides the kernel: ``inner_kernel`` has tiles of rows and inner
places of one channel, ``channels_kernel`` of channels and inner places of one row. A program walks its tiles, with the next ones
on their way to shared memory, and keeps its sums in registers. Where several programs share a channel, another kernel adds up
their sums, always in the same order: results are the same bits in every run.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _row_offset(row, size_1, size_2, stride_0, stride_1, stride_2, DIMS: tl.constexpr):
    """Offset of a row, which is an index into up to three dimensions, in elements."""
    if DIMS == 1:
        offset = row.to(tl.int64) * stride_0
    elif DIMS == 2:
        offset = (row // size_1).to(tl.int64) * stride_0 + (row % size_1).to(tl.int64) * stride_1
    else:
        offset = (row // (size_1 * size_2)).to(tl.int64) * stride_0 + (row // size_2 % size_1).to(tl.int64) * stride_1
        offset += (row % size_2).to(tl.int64) * stride_2
    return offset


@triton.jit
def _folded(values, LARGEST: tl.constexpr, FOLD: tl.constexpr, ALONG_I: tl.constexpr):
    """[BLOCK_C, BLOCK_I] -> [BLOCK_C, BLOCK_I / FOLD]: sums, or maxima, of values that one thread holds."""
    channels: tl.constexpr = values.shape[0]
    rest: tl.constexpr = values.shape[1] // FOLD
    if FOLD == 1:
        folded = values
    elif ALONG_I:
        parts = tl.reshape(values, (channels, rest, FOLD))
        folded = tl.max(parts, axis=2) if LARGEST else tl.sum(parts, axis=2)
    else:
        parts = tl.reshape(values, (channels, FOLD, rest))
        folded = tl.max(parts, axis=1) if LARGEST else tl.sum(parts, axis=1)
    return folded


@triton.jit
def _zeros(ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The running statistics before the first tile."""
    zero = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    return zero, zero, zero, zero, zero, zero


@triton.jit
def _add(x, total, absolute, square, fourth, largest, nonzero, FOLD: tl.constexpr, ALONG_I: tl.constexpr):
    """Add a tile to the running statistics."""
    magnitude = tl.abs(x)
    squared = x * x
    return (
        total + _folded(x, False, FOLD, ALONG_I),
        absolute + _folded(magnitude, False, FOLD, ALONG_I),
        square + _folded(squared, False, FOLD, ALONG_I),
        fourth + _folded(squared * squared, False, FOLD, ALONG_I),
        tl.maximum(largest, _folded(magnitude, True, FOLD, ALONG_I)),
        nonzero + _folded(tl.where(x != 0, 1.0, 0.0), False, FOLD, ALONG_I),
    )


@triton.jit
def _loaded(pointers, mask, FULL: tl.constexpr, PAIRS: tl.constexpr, ALONG_I: tl.constexpr):
    """A tile as float32. PAIRS: it is of words, each two bfloat16 along the contiguous dimension, which then becomes twice as long.

    As a number, a bfloat16 is the upper half of a float32: two instructions open a word, where the compiler takes three.
    """
    if FULL:
        x = tl.load(pointers, eviction_policy="evict_first")
    else:
        x = tl.load(pointers, mask=mask, other=0, eviction_policy="evict_first")
    if PAIRS:
        low = (x << 16).to(tl.float32, bitcast=True)
        high = (x & -65536).to(tl.float32, bitcast=True)
        x = tl.interleave(low, high) if ALONG_I else tl.trans(tl.interleave(tl.trans(low), tl.trans(high)))
    return x.to(tl.float32)


@triton.jit
def _store(partial_ptr, program, c, c_mask, channels, total, absolute, square, fourth, largest, taylor, STATS: tl.constexpr):
    """Sums of a program: partial is [programs, STATS, channels]."""
    p_partial = partial_ptr + program.to(tl.int64) * STATS * channels + c
    absolute = tl.sum(absolute, axis=1)
    tl.store(p_partial, tl.sum(total, axis=1), mask=c_mask)
    tl.store(p_partial + channels, absolute, mask=c_mask)
    tl.store(p_partial + 2 * channels, tl.sum(square, axis=1), mask=c_mask)
    tl.store(p_partial + 3 * channels, tl.sum(fourth, axis=1), mask=c_mask)
    # Hardware maxima drop NaN; the sum of the same values has it.
    tl.store(p_partial + 4 * channels, tl.where(absolute == absolute, tl.max(largest, axis=1), absolute), mask=c_mask)
    if STATS == 6:
        tl.store(p_partial + 5 * channels, tl.sum(taylor, axis=1), mask=c_mask)


@triton.jit(do_not_specialize=["channels", "programs"])
def merge_kernel(
    partial_ptr, count_ptr, sums_ptr, nonzero_ptr, channels, programs,
    STATS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """partial[programs, STATS, channels] -> sums[STATS, channels]; count[programs, channels] -> nonzero[channels].

    A program has a block of channels of one row of the sums, or of the counts.
    """
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.program_id(1)
    p = tl.arange(0, BLOCK_P)
    c_mask = c < channels
    if row == STATS:
        count = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.int64)
        for start in tl.range(0, programs, BLOCK_P, loop_unroll_factor=2):
            mask = (start + p < programs)[:, None] & c_mask[None, :]
            count += tl.load(count_ptr + (start + p).to(tl.int64)[:, None] * channels + c[None, :], mask=mask, other=0)
        tl.store(nonzero_ptr + c, tl.sum(count, axis=0), mask=c_mask)
    else:
        # Row 4 is a maximum. Hardware maxima drop NaN, so it takes NaN from row 1, the sum of the same values.
        total = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        largest = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
        summed = tl.where(row == 4, 1, row)
        for start in tl.range(0, programs, BLOCK_P, loop_unroll_factor=2):
            mask = (start + p < programs)[:, None] & c_mask[None, :]
            p_partial = partial_ptr + (start + p).to(tl.int64)[:, None] * STATS * channels + c[None, :]
            total += tl.load(p_partial + summed * channels, mask=mask, other=0.0)
            largest = tl.maximum(largest, tl.load(p_partial + row * channels, mask=mask & (row == 4), other=0.0))
        result = tl.sum(total, axis=0)
        result = tl.where((row == 4) & (result == result), tl.max(largest, axis=0), result)
        tl.store(sums_ptr + row * channels + c, result, mask=c_mask)


# Sizes and strides are no reason to compile again: what matters of them comes as constants.
@triton.jit(do_not_specialize=[
    "channels", "inner", "rows", "size_1", "size_2", "stride_c", "stride_i", "stride_0", "stride_1", "stride_2", "tiles_each",
])  # fmt: skip
def inner_kernel(
    x_ptr, partial_ptr, count_ptr,
    channels, inner, rows, size_1, size_2, stride_c, stride_i, stride_0, stride_1, stride_2, tiles_each,
    ALIGN: tl.constexpr, I_ALIGN: tl.constexpr, I_UNIT: tl.constexpr, DIMS: tl.constexpr, FULL: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_I: tl.constexpr, FOLD: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x[rows, channels, inner] -> partial[programs, 5, channels] and count; a program has tiles [BLOCK_R, BLOCK_I] of a channel.

    Strides and sizes come divided by their ALIGN. With PAIRS, x is bfloat16 and is read in words.
    """
    c = tl.program_id(0)
    program = tl.program_id(1)
    WORD: tl.constexpr = 2 if PAIRS else 1
    inner = inner.to(tl.int64 if WIDE else tl.int32) * I_ALIGN
    step_i = 1 if I_UNIT else stride_i.to(tl.int64) * ALIGN
    r = tl.arange(0, BLOCK_R)
    i = tl.arange(0, BLOCK_I // WORD)
    if PAIRS:
        x_ptr = x_ptr.to(tl.pointer_type(tl.int32))
    p_channel = x_ptr + c.to(tl.int64) * stride_c * (ALIGN // WORD)

    across = tl.cdiv(inner, BLOCK_I)
    first = program.to(tl.int64) * tiles_each
    last = tl.minimum(first + tiles_each, across * tl.cdiv(rows, BLOCK_R).to(tl.int64))
    row = (first // across).to(tl.int32) * BLOCK_R
    start = (first % across).to(tl.int64 if WIDE else tl.int32) * BLOCK_I

    total, absolute, square, fourth, largest, nonzero = _zeros(BLOCK_R, BLOCK_I // FOLD)
    for _ in tl.range(0, (last - first).to(tl.int32), num_stages=STAGES):
        base = _row_offset(row + r, size_1, size_2, stride_0, stride_1, stride_2, DIMS) * (ALIGN // WORD)
        p_tile = p_channel + (base[:, None] + (start // WORD + i).to(tl.int64)[None, :] * step_i)
        mask = (row + r < rows)[:, None] & (start + i * WORD < inner)[None, :]
        x = _loaded(p_tile, mask, FULL, PAIRS, True)
        total, absolute, square, fourth, largest, nonzero = _add(x, total, absolute, square, fourth, largest, nonzero, FOLD, True)
        wrap = start + BLOCK_I >= inner
        row = tl.where(wrap, row + BLOCK_R, row)
        start = tl.where(wrap, 0, start + BLOCK_I).to(tl.int64 if WIDE else tl.int32)
    every: tl.constexpr = BLOCK_R * (BLOCK_I // FOLD)
    _store(
        partial_ptr, program, c + tl.arange(0, 1), tl.arange(0, 1) < 1, channels,
        tl.reshape(total, (1, every)), tl.reshape(absolute, (1, every)), tl.reshape(square, (1, every)),
        tl.reshape(fourth, (1, every)), tl.reshape(largest, (1, every)), tl.reshape(total, (1, every)), 5,
    )  # fmt: skip
    tl.store(count_ptr + program.to(tl.int64) * channels + c, tl.sum(tl.sum(nonzero.to(tl.int32), axis=1), axis=0))


@triton.jit(do_not_specialize=[
    "channels", "inner", "rows", "size_1", "size_2", "stride_c", "stride_i", "stride_0", "stride_1", "stride_2", "tiles_each",
])  # fmt: skip
def channels_kernel(
    x_ptr, partial_ptr, count_ptr,
    channels, inner, rows, size_1, size_2, stride_c, stride_i, stride_0, stride_1, stride_2, tiles_each,
    ALIGN: tl.constexpr, C_ALIGN: tl.constexpr, C_UNIT: tl.constexpr, DIMS: tl.constexpr, FULL: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr, FOLD: tl.constexpr, PAIRS: tl.constexpr, STAGES: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """x[rows, channels, inner] -> partial[programs, 5, channels] and count; a program has tiles [BLOCK_C, BLOCK_I] of some rows.

    Strides and sizes come divided by their ALIGN. With PAIRS, x is bfloat16 and is read in words.
    """
    group = tl.program_id(0)
    program = tl.program_id(1)
    WORD: tl.constexpr = 2 if PAIRS else 1
    channels = channels * C_ALIGN
    inner = inner.to(tl.int64 if WIDE else tl.int32)
    step_c = 1 if C_UNIT else stride_c.to(tl.int64) * ALIGN
    step_i = stride_i.to(tl.int64) * (ALIGN // WORD)
    word = group * (BLOCK_C // WORD) + tl.arange(0, BLOCK_C // WORD)
    i = tl.arange(0, BLOCK_I)
    if PAIRS:
        x_ptr = x_ptr.to(tl.pointer_type(tl.int32))
    p_tile = x_ptr + (word.to(tl.int64)[:, None] * step_c + i.to(tl.int64)[None, :] * step_i)

    across = tl.cdiv(inner, BLOCK_I)
    first = program.to(tl.int64) * tiles_each
    last = tl.minimum(first + tiles_each, across * rows.to(tl.int64))
    row = (first // across).to(tl.int32)
    start = (first % across).to(tl.int64 if WIDE else tl.int32) * BLOCK_I

    total, absolute, square, fourth, largest, nonzero = _zeros(BLOCK_C, BLOCK_I // FOLD)
    for _ in tl.range(0, (last - first).to(tl.int32), num_stages=STAGES):
        base = _row_offset(row, size_1, size_2, stride_0, stride_1, stride_2, DIMS) * (ALIGN // WORD) + start * step_i
        mask = (word * WORD < channels)[:, None] & (start + i < inner)[None, :]
        x = _loaded(p_tile + base, mask, FULL, PAIRS, False)
        total, absolute, square, fourth, largest, nonzero = _add(x, total, absolute, square, fourth, largest, nonzero, FOLD, False)
        wrap = start + BLOCK_I >= inner
        row = tl.where(wrap, row + 1, row)
        start = tl.where(wrap, 0, start + BLOCK_I).to(tl.int64 if WIDE else tl.int32)
    c = group * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    _store(partial_ptr, program, c, c_mask, channels, total, absolute, square, fourth, largest, total, 5)
    tl.store(count_ptr + program.to(tl.int64) * channels + c, tl.sum(nonzero.to(tl.int32), axis=1), mask=c_mask)


@triton.jit(do_not_specialize=[
    "tau", "samples", "channels", "inner", "positions", "size_1", "chunks", "items_each", "x_stride_n", "x_stride_c",
    "x_stride_i", "x_stride_0", "x_stride_1", "g_stride_n", "g_stride_c", "g_stride_i", "g_stride_0", "g_stride_1", "k_stride_c",
    "k_stride_i", "k_stride_0", "k_stride_1",
])  # fmt: skip
def gradient_kernel(
    x_ptr, g_ptr, partial_ptr, count_ptr, taylor_ptr, indicator_ptr, tau,
    samples, channels, inner, positions, size_1, chunks, items_each,
    x_stride_n, x_stride_c, x_stride_i, x_stride_0, x_stride_1, g_stride_n, g_stride_c, g_stride_i, g_stride_0, g_stride_1,
    k_stride_c, k_stride_i, k_stride_0, k_stride_1,
    X_ALIGN: tl.constexpr, G_ALIGN: tl.constexpr, C_ALIGN: tl.constexpr, I_ALIGN: tl.constexpr,
    X_C_UNIT: tl.constexpr, X_I_UNIT: tl.constexpr, G_C_UNIT: tl.constexpr, G_I_UNIT: tl.constexpr,
    DIMS: tl.constexpr, FULL: tl.constexpr, COUNT: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr,
    FOLD: tl.constexpr, ALONG_I: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x, g [samples, channels, positions, inner] -> as above, taylor[tiles, samples, channels], indicator[channels, ...].

    A program takes items in turn, each a tile of locations and a chunk of the samples.
    """
    group = tl.program_id(0)
    program = tl.program_id(1)
    channels = channels * C_ALIGN
    inner = inner * I_ALIGN
    across = tl.cdiv(inner, BLOCK_I)
    items = across * positions * chunks
    samples_each = tl.cdiv(samples, chunks)
    x_step_c = 1 if X_C_UNIT else x_stride_c.to(tl.int64) * X_ALIGN
    x_step_i = 1 if X_I_UNIT else x_stride_i.to(tl.int64) * X_ALIGN
    g_step_c = 1 if G_C_UNIT else g_stride_c.to(tl.int64) * G_ALIGN
    g_step_i = 1 if G_I_UNIT else g_stride_i.to(tl.int64) * G_ALIGN
    c = group * BLOCK_C + tl.arange(0, BLOCK_C)
    c_mask = c < channels
    wide_c = c.to(tl.int64)[:, None]

    total, absolute, square, fourth, largest, nonzero = _zeros(BLOCK_C, BLOCK_I // FOLD)
    taylor = tl.zeros((BLOCK_C, BLOCK_I // FOLD), dtype=tl.float32)
    for item in range(program * items_each, tl.minimum((program + 1) * items_each, items)):
        tile = item // chunks
        position = tile // across
        i = (tile % across) * BLOCK_I + tl.arange(0, BLOCK_I)
        mask = c_mask[:, None] & (i < inner)[None, :]
        wide_i = i.to(tl.int64)[None, :]
        x_base = _row_offset(position, size_1, 1, x_stride_0, x_stride_1, 0, DIMS) * X_ALIGN
        g_base = _row_offset(position, size_1, 1, g_stride_0, g_stride_1, 0, DIMS) * G_ALIGN
        p_x = x_ptr + x_base + (wide_c * x_step_c + wide_i * x_step_i)
        p_g = g_ptr + g_base + (wide_c * g_step_c + wide_i * g_step_i)
        p_taylor = taylor_ptr + tile.to(tl.int64) * samples * channels + c
        above = tl.zeros((BLOCK_C, BLOCK_I), dtype=tl.int32)
        first = (item % chunks) * samples_each
        for n in tl.range(first, tl.minimum(first + samples_each, samples), num_stages=STAGES):
            wide_n = tl.cast(n, tl.int64)
            x = _loaded(p_x + wide_n * x_stride_n * X_ALIGN, mask, FULL, False, ALONG_I)
            g = _loaded(p_g + wide_n * g_stride_n * G_ALIGN, mask, FULL, False, ALONG_I)
            total, absolute, square, fourth, largest, nonzero = _add(
                x, total, absolute, square, fourth, largest, nonzero, FOLD, ALONG_I
            )
            term = x * g
            folded = _folded(term, False, FOLD, ALONG_I)
            taylor += _folded(tl.abs(term), False, FOLD, ALONG_I)
            if COUNT:
                above += (tl.abs(term) > tau).to(tl.int32)
            tl.store(p_taylor + wide_n * channels, tl.sum(folded, axis=1), mask=c_mask)
        if COUNT:  # whole numbers add up to the same in any order
            k_base = _row_offset(position, size_1, 1, k_stride_0, k_stride_1, 0, DIMS)
            tl.atomic_add(indicator_ptr + k_base + wide_c * k_stride_c + wide_i * k_stride_i, above, mask=mask, sem="relaxed")
    _store(partial_ptr, program, c, c_mask, channels, total, absolute, square, fourth, largest, taylor, 6)
    tl.store(count_ptr + program.to(tl.int64) * channels + c, tl.sum(nonzero.to(tl.int32), axis=1), mask=c_mask)
