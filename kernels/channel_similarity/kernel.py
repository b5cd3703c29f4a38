"""Triton kernels for distances between rows: matrices of all sizes in one launch each, products on the tensor cores.

Rows are centred, scaled by a power of two of their own and split in two float16, ``x = high + low``, which holds 22 bits; the
product of two rows is then ``high . high + high . low + low . high``, summed in float32. A tile of products becomes distances
in registers and leaves only sums and minima of its rows and columns, so each pair of blocks is computed once. All of it is
deterministic: every program writes to places of its own, and what is added later is added in order.

``starts`` is int64 [8, matrices + 1]: where each matrix begins, counted in the units named below.
"""

# Triton's language has no types.
# mypy: disable-error-code="no-untyped-def, untyped-decorator, import-untyped"

from __future__ import annotations

import triton
import triton.language as tl

VALUES = tl.constexpr(0)  # elements of the packed matrices
ROWS = tl.constexpr(1)
COLUMNS = tl.constexpr(2)
SPLIT = tl.constexpr(3)  # PADDING elements of the split rows: as a factor, it tells the compiler that loads are aligned
COLUMN_BLOCKS = tl.constexpr(4)
TILES = tl.constexpr(5)
NORM_TILES = tl.constexpr(6)
SPLIT_TILES = tl.constexpr(7)
GROUP = tl.constexpr(8)  # blocks of rows that are paired at about the same time, for the cache
PADDING = tl.constexpr(64)  # split rows are as long as a multiple of this


@triton.jit
def _find(starts_ptr, matrices, position, UNIT: tl.constexpr, STEPS: tl.constexpr):
    """The matrix that a position counted in a unit falls into, by bisection, and the start of it."""
    p_starts = starts_ptr + UNIT * (matrices + 1)
    low = 0
    high = matrices
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        below = tl.load(p_starts + middle) <= position
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    return low, tl.load(p_starts + low)


@triton.jit
def _start(starts_ptr, matrices, matrix, UNIT: tl.constexpr):
    return tl.load(starts_ptr + UNIT * (matrices + 1) + matrix)


@triton.jit
def _size(starts_ptr, matrices, matrix, UNIT: tl.constexpr):
    return (_start(starts_ptr, matrices, matrix + 1, UNIT) - _start(starts_ptr, matrices, matrix, UNIT)).to(tl.int32)


@triton.jit
def length_kernel(x_ptr, starts_ptr, inverse_ptr, matrices, STEPS: tl.constexpr, BLOCK_D: tl.constexpr):
    """One over the length of each row; 0 for a row of zeros. A program per row."""
    row = tl.program_id(0)
    matrix, first = _find(starts_ptr, matrices, row, ROWS, STEPS)
    length = _size(starts_ptr, matrices, matrix, COLUMNS)
    p_x = x_ptr + _start(starts_ptr, matrices, matrix, VALUES) + (row - first) * length
    d = tl.arange(0, BLOCK_D)
    largest = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, length, BLOCK_D):
        largest = tl.maximum(largest, tl.abs(tl.load(p_x + start + d, mask=start + d < length, other=0.0).to(tl.float32)))
    most = tl.max(largest, axis=0)
    scale = tl.where(most > 0, most, 1.0)
    squares = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, length, BLOCK_D):
        x = tl.load(p_x + start + d, mask=start + d < length, other=0.0).to(tl.float32) / scale
        squares += x * x
    square = tl.sum(squares, axis=0)
    tl.store(inverse_ptr + row, tl.where(square > 0, 1.0 / (tl.sqrt(square) * scale), square))


@triton.jit
def column_kernel(
    x_ptr, starts_ptr, inverse_ptr, partial_ptr, matrices, columns, chunks,
    STEPS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """partial[chunks, 2, columns]: of each chunk of rows its share of the mean row, and its sum of rows of length one."""
    block = tl.program_id(0)
    chunk = tl.program_id(1)
    matrix, first = _find(starts_ptr, matrices, block, COLUMN_BLOCKS, STEPS)
    rows = _size(starts_ptr, matrices, matrix, ROWS)
    length = _size(starts_ptr, matrices, matrix, COLUMNS)
    row_start = _start(starts_ptr, matrices, matrix, ROWS)
    d = (block - first).to(tl.int32) * BLOCK_D + tl.arange(0, BLOCK_D)
    n = tl.arange(0, BLOCK_N)
    p_x = x_ptr + _start(starts_ptr, matrices, matrix, VALUES) + n.to(tl.int64)[:, None] * length + d[None, :]
    each = tl.cdiv(rows, chunks)
    stop = tl.minimum(rows, (chunk + 1) * each)
    total = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    unit = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(chunk * each, stop, BLOCK_N):
        mask = start + n < stop
        offset = tl.cast(start, tl.int64) * length
        x = tl.load(p_x + offset, mask=mask[:, None] & (d < length)[None, :], other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr + row_start + start + n, mask=mask, other=0.0)
        total += x
        unit += x * inverse[:, None]
    p_partial = partial_ptr + chunk.to(tl.int64) * 2 * columns + _start(starts_ptr, matrices, matrix, COLUMNS) + d
    tl.store(p_partial, tl.sum(total, axis=0) / rows, mask=d < length)
    tl.store(p_partial + columns, tl.sum(unit, axis=0), mask=d < length)


@triton.jit
def split_kernel(
    x_ptr, starts_ptr, inverse_ptr, column_ptr, cosine_ptr, scale_ptr, high_ptr, low_ptr, matrices, columns,
    STEPS: tl.constexpr, PARTS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Mean cosine distance of each row, and the row centred, scaled and split; column is [2, columns].

    A program has BLOCK_N rows, so that the columns' means are read once for all of them.
    """
    tile = tl.program_id(0)
    matrix, first = _find(starts_ptr, matrices, tile, SPLIT_TILES, STEPS)
    rows = _size(starts_ptr, matrices, matrix, ROWS)
    length = _size(starts_ptr, matrices, matrix, COLUMNS)
    row_start = _start(starts_ptr, matrices, matrix, ROWS)
    width = tl.cdiv(length, PADDING) * PADDING
    n = (tile - first).to(tl.int32) * BLOCK_N + tl.arange(0, BLOCK_N)
    wide_n = n.to(tl.int64)[:, None]
    d = tl.arange(0, BLOCK_D)
    p_x = x_ptr + _start(starts_ptr, matrices, matrix, VALUES) + wide_n * length + d[None, :]
    p_column = column_ptr + _start(starts_ptr, matrices, matrix, COLUMNS) + d
    inverse = tl.load(inverse_ptr + row_start + n, mask=n < rows, other=0.0)
    # [BLOCK_N, BLOCK_D]
    product = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    square = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    largest = tl.zeros((BLOCK_N, BLOCK_D), dtype=tl.float32)
    for start in range(0, length, BLOCK_D):
        mask = (n < rows)[:, None] & (start + d < length)[None, :]
        x = tl.load(p_x + start, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(p_column + start, mask=start + d < length, other=0.0)
        unit = x * inverse[:, None]
        product += unit * tl.load(p_column + columns + start, mask=start + d < length, other=0.0)[None, :]
        square += unit * unit
        largest = tl.maximum(largest, tl.where(mask, tl.abs(x - mean[None, :]), 0.0))
    similar = tl.sum(product, axis=1) - tl.sum(square, axis=1)
    cosine = tl.where(rows > 1, 1.0 - similar / tl.maximum(rows - 1, 1), float("inf"))
    tl.store(cosine_ptr + row_start + n, cosine, mask=n < rows)

    # The power of two that brings the largest value to [2^14, 2^15): float16 ends at 65504, and what it loses is below 2^-24.
    exponent = tl.max(largest, axis=1).to(tl.int32, bitcast=True) >> 23
    biased = tl.minimum(tl.maximum(268 - exponent, 1), 253)
    scale = (biased << 23).to(tl.float32, bitcast=True)
    tl.store(scale_ptr + row_start + n, ((254 - biased) << 23).to(tl.float32, bitcast=True), mask=n < rows)
    split = _start(starts_ptr, matrices, matrix, SPLIT) * PADDING + wide_n * width + d[None, :]
    for start in range(0, width, BLOCK_D):
        mask = (n < rows)[:, None] & (start + d < length)[None, :]
        x = tl.load(p_x + start, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(p_column + start, mask=start + d < length, other=0.0)
        x = tl.where(mask, (x - mean[None, :]) * scale[:, None], 0.0)
        high = x.to(tl.float16)
        kept = (n < rows)[:, None] & (start + d < width)[None, :]
        tl.store(high_ptr + split + start, high, mask=kept)
        if PARTS == 2:
            tl.store(low_ptr + split + start, (x - high.to(tl.float32)).to(tl.float16), mask=kept)


@triton.jit
def _products(high_ptr, low_ptr, i, j, width, PARTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr):
    """Products of rows i and j, [BLOCK, BLOCK]: always added in the same order, so that equal rows give equal products.

    Tensor cores cut off what does not fit the sum so far, always towards zero. A sum of their own for each few columns, added
    up with rounding, keeps that from growing with the length of the rows.
    """
    k = tl.arange(0, BLOCK_K)
    o_i = i[:, None] * width + k[None, :]
    o_j = j[None, :] * width + k[:, None]
    products = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, width, BLOCK_K):
        high_i = tl.load(high_ptr + o_i + start)
        high_j = tl.load(high_ptr + o_j + start)
        if PARTS == 2:
            low_i = tl.load(low_ptr + o_i + start)
            low_j = tl.load(low_ptr + o_j + start)
            part = tl.dot(high_i, low_j)
            part = tl.dot(low_i, high_j, part)
            products += tl.dot(high_i, high_j, part)
        else:
            products = tl.dot(high_i, high_j, products)
    return products


@triton.jit
def square_kernel(
    starts_ptr, scale_ptr, high_ptr, low_ptr, square_ptr, matrices,
    STEPS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Squared length of each centred row, by the arithmetic of the products: for equal rows the difference is then 0."""
    tile = tl.program_id(0)
    matrix, first = _find(starts_ptr, matrices, tile, NORM_TILES, STEPS)
    rows = _size(starts_ptr, matrices, matrix, ROWS)
    width = tl.cdiv(_size(starts_ptr, matrices, matrix, COLUMNS), PADDING) * PADDING
    split = _start(starts_ptr, matrices, matrix, SPLIT) * PADDING
    row_start = _start(starts_ptr, matrices, matrix, ROWS)
    i = (tile - first).to(tl.int32) * BLOCK + tl.arange(0, BLOCK)
    near = tl.minimum(i, rows - 1).to(tl.int64)
    products = _products(high_ptr + split, low_ptr + split, near, near, width, PARTS, BLOCK, BLOCK_K)
    o = tl.arange(0, BLOCK)
    square = tl.sum(tl.where(o[:, None] == o[None, :], products, 0.0), axis=1)
    scale = tl.load(scale_ptr + row_start + near)
    tl.store(square_ptr + row_start + i, square * scale * scale, mask=i < rows)


@triton.jit
def _merge(total_ptr, nearest_ptr, neighbour_ptr, slot, mask, fresh, total, nearest, neighbour):
    """Add partial results to a slot, or start it."""
    old = mask & (fresh == 0)
    total += tl.load(total_ptr + slot, mask=old, other=0.0)
    before = tl.load(nearest_ptr + slot, mask=old, other=float("inf"))
    neighbour = tl.where(before <= nearest, tl.load(neighbour_ptr + slot, mask=old, other=0), neighbour)
    tl.store(total_ptr + slot, total, mask=mask)
    tl.store(nearest_ptr + slot, tl.minimum(before, nearest), mask=mask)
    tl.store(neighbour_ptr + slot, neighbour, mask=mask)


@triton.jit
def pair_kernel(
    starts_ptr, scale_ptr, square_ptr, high_ptr, low_ptr, total_ptr, nearest_ptr, neighbour_ptr, matrices, all_rows,
    STEPS: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sums and minima of distances between two blocks of rows, to [SLOTS, all_rows]: at row i, the slot of j's block.

    A program has a pair of blocks, the first not after the second; where a matrix has more blocks than there are slots, a pair of
    runs of blocks, which it adds up in turn.
    """
    tile = tl.program_id(0)
    matrix, first = _find(starts_ptr, matrices, tile, TILES, STEPS)
    rows = _size(starts_ptr, matrices, matrix, ROWS)
    width = tl.cdiv(_size(starts_ptr, matrices, matrix, COLUMNS), PADDING) * PADDING
    split = _start(starts_ptr, matrices, matrix, SPLIT) * PADDING
    row_start = _start(starts_ptr, matrices, matrix, ROWS)
    blocks = tl.cdiv(rows, BLOCK)
    run = tl.cdiv(blocks, SLOTS)
    runs = tl.cdiv(blocks, run)
    side = tl.minimum(runs, GROUP)
    # Squares of side x side pairs, in the order (0, 0), (0, 1), (1, 1), (0, 2) ...
    group = (tile - first).to(tl.int32) // (side * side)
    inside = (tile - first).to(tl.int32) % (side * side)
    across = ((tl.sqrt(8.0 * group.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    across = tl.where(across * (across + 1) // 2 > group, across - 1, across)
    across = tl.where((across + 1) * (across + 2) // 2 <= group, across + 1, across)
    run_i = (group - across * (across + 1) // 2) * side + inside % side
    run_j = across * side + inside // side
    if (run_i > run_j) | (run_j >= runs):
        return
    for step in range(run * run):
        u = step // run
        v = step % run
        block_i = run_i * run + u
        block_j = run_j * run + v
        if (block_i <= block_j) & (block_j < blocks):
            i = block_i * BLOCK + tl.arange(0, BLOCK)
            j = block_j * BLOCK + tl.arange(0, BLOCK)
            near_i = tl.minimum(i, rows - 1).to(tl.int64)
            near_j = tl.minimum(j, rows - 1).to(tl.int64)
            products = _products(high_ptr + split, low_ptr + split, near_i, near_j, width, PARTS, BLOCK, BLOCK_K)
            products *= tl.load(scale_ptr + row_start + near_i)[:, None] * tl.load(scale_ptr + row_start + near_j)[None, :]
            squared = tl.load(square_ptr + row_start + near_i)[:, None] + tl.load(square_ptr + row_start + near_j)[None, :]
            squared = squared - 2.0 * products
            squared = tl.where(squared < 0, 0.0, squared)  # NaN stays
            # [BLOCK, BLOCK]
            counted = (i[:, None] != j[None, :]) & (i < rows)[:, None] & (j < rows)[None, :]
            distance = tl.where(counted, tl.sqrt(squared), 0.0)
            other = tl.where(counted, distance, float("inf"))

            nearest, neighbour = tl.min(other, axis=1, return_indices=True)
            slot = run_j.to(tl.int64) * all_rows + row_start + i
            fresh = ((v == 0) & ((run_i != run_j) | (u == 0))).to(tl.int32)
            _merge(
                total_ptr, nearest_ptr, neighbour_ptr, slot, i < rows, fresh,
                tl.sum(distance, axis=1), nearest, neighbour + block_j * BLOCK,
            )  # fmt: skip
            if block_i != block_j:
                tl.debug_barrier()
                nearest, neighbour = tl.min(other, axis=0, return_indices=True)
                slot = run_i.to(tl.int64) * all_rows + row_start + j
                _merge(
                    total_ptr, nearest_ptr, neighbour_ptr, slot, j < rows, (u == 0).to(tl.int32),
                    tl.sum(distance, axis=0), nearest, neighbour + block_i * BLOCK,
                )  # fmt: skip
            tl.debug_barrier()


@triton.jit
def finish_kernel(
    x_ptr, starts_ptr, total_ptr, nearest_ptr, neighbour_ptr, euclidean_ptr, found_ptr, exact_ptr, matrices, all_rows,
    STEPS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Each row's results from its slots, with the distance to its neighbour taken from the rows themselves."""
    row = tl.program_id(0)
    matrix, first = _find(starts_ptr, matrices, row, ROWS, STEPS)
    rows = _size(starts_ptr, matrices, matrix, ROWS)
    length = _size(starts_ptr, matrices, matrix, COLUMNS)
    blocks = tl.cdiv(rows, BLOCK)
    runs = tl.cdiv(blocks, tl.cdiv(blocks, SLOTS))
    s = tl.arange(0, SLOTS)
    slot = s.to(tl.int64) * all_rows + row
    total = tl.sum(tl.load(total_ptr + slot, mask=s < runs, other=0.0), axis=0)
    nearest, place = tl.min(tl.load(nearest_ptr + slot, mask=s < runs, other=float("inf")), axis=0, return_indices=True)
    neighbour = tl.load(neighbour_ptr + place.to(tl.int64) * all_rows + row)
    neighbour = tl.minimum(tl.maximum(neighbour, 0), rows - 1)

    p_rows = x_ptr + _start(starts_ptr, matrices, matrix, VALUES)
    p_i = p_rows + (row - first) * length
    p_j = p_rows + neighbour.to(tl.int64) * length
    d = tl.arange(0, BLOCK_D)
    squares = tl.zeros((BLOCK_D,), dtype=tl.float32)
    for start in range(0, length, BLOCK_D):
        mask = start + d < length
        x = tl.load(p_i + start + d, mask=mask, other=0.0).to(tl.float32)
        x -= tl.load(p_j + start + d, mask=mask, other=0.0).to(tl.float32)
        squares += x * x
    exact = tl.sqrt(tl.sum(squares, axis=0))
    alone = rows < 2
    mean = (total - nearest + exact) / tl.maximum(rows - 1, 1)
    tl.store(euclidean_ptr + row, tl.where(alone, float("inf"), mean))
    tl.store(exact_ptr + row, tl.where(alone, float("inf"), exact))
    tl.store(found_ptr + row, tl.where(alone, -1, neighbour).to(tl.int64))
