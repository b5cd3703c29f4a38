"""Runs the Triton kernels on a CPU, in Triton's interpreter, against the references. A process of its own: the variable must be
set before a kernel is defined.

    TRITON_INTERPRET=1 python -m tests.kernels.interpreted attention|similarity
"""

from __future__ import annotations

import sys
from itertools import product

import torch

from graphprune.kernels.activation_attention import launch as attention_launch
from graphprune.kernels.channel_similarity import launch as similarity_launch
from tests.kernels import common

# Sizes that fill no tile: one element, a prime of channels, one more than a power of two, no space at all.
SHAPES = [(1, 1, 1, 1), (2, 63, 3, 3), (1, 2, 1, 2049), (3, 33), (2, 16, 4, 8)]
SMALL = attention_launch.Tiling(loads=1, contiguous=16, warps=1, stages=2, programs=3)


def attention() -> None:
    """Every shape and layout in small tiles, two shapes in those that are the default, every dtype."""
    tilings = [*product(SHAPES, (SMALL,)), *product(SHAPES[1:3], (None,))]
    cases = [(torch.randn(shape).relu(), torch.randn(shape), tiling) for shape, tiling in tilings]
    a, g = torch.randn(2, 5, 3, 6), torch.randn(2, 5, 3, 6)
    others = common.layouts(g)
    cases += [(values, others[name], SMALL) for name, values in common.layouts(a).items()]
    cases += [(common.layouts(a)[name], others["channels_last"], SMALL) for name in ("contiguous", "transposed")]
    cases += [(a.to(dtype), g.to(dtype), SMALL) for dtype in (torch.float16, torch.bfloat16)]
    wide = torch.randn(2, 6, 3, 4).bfloat16()  # in words, whichever dimension is contiguous
    cases += [(values, values, SMALL) for values in common.layouts(wide).values()]
    cases += [(a[:, :, :0], g[:, :, :0], SMALL), (a[:1].expand(2, -1, -1, -1), g, SMALL)]
    many = torch.randn(2, 3, 2, 3, 4, 2)
    cases += [(many.flip(0)[:, :, ::2], many[:, :, ::2], SMALL), (many.transpose(2, 5), many.transpose(2, 5), SMALL)]
    not_finite = a.clone()
    not_finite[1, 2, 0, 0] = torch.nan
    with common.poisoned():
        for number, (x, y, tiling) in enumerate(cases):
            tau = 0.3 if number % 2 else None
            sums, nonzero = attention_launch.launch(x, 1, tiling)
            common.assert_attention((*sums, nonzero, None, None, None), common.attention(x), x.dtype)
            sums, nonzero, taylor, indicator = attention_launch.launch_with_gradient(x, y, tau, 1, tiling)
            found = (*sums[:5], nonzero, taylor, sums[5], indicator if tau is not None else None)
            common.assert_attention(found, common.attention(x, y, tau), x.dtype)
        sums, _ = attention_launch.launch(not_finite, 1, SMALL)
    assert sums[0].isnan().tolist() == sums[4].isnan().tolist() == [False, False, True, False, False]


def similarity() -> None:
    """Ragged batches in both precisions; more blocks than slots; duplicates; a row alone, and rows of zeros."""
    tiny = similarity_launch.Tiling(block=16, depth=64, warps=4, stages=1, slots=2)
    matrices = [torch.randn(35, 3, 3) + 4, torch.randn(1, 9), torch.randn(2, 1), torch.randn(5, 70)]
    matrices[0][33], matrices[3][2] = matrices[0][1], 0
    for dtype, parts, tiling in ((torch.float32, 2, tiny), (torch.bfloat16, 1, None)):
        batch = [matrix.to(dtype) for matrix in matrices]
        with common.poisoned():
            columns = similarity_launch.launch(batch, parts, tiling)
        found = list(zip(*(column.split([len(matrix) for matrix in batch]) for column in columns), strict=True))
        for matrix, results in zip(batch, found, strict=True):
            if len(matrix) > 1:
                scale = float(matrix.double().flatten(1).norm(dim=1).amax())
                rtol = common.RTOL[dtype] if parts == 2 else common.RTOL_HIGH
                common.assert_similarity(results, *common.distances(matrix), scale, dtype, rtol)
        assert [float(column) for column in found[1]] == [torch.inf, torch.inf, -1, torch.inf]
        neighbour, nearest = found[0][2:]
        assert (int(neighbour[1]), int(neighbour[33]), float(nearest[1]), float(nearest[33])) == (33, 1, 0, 0)
        assert float(found[3][1][2]) == 1, "cosine distance of a row of zeros"


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    {"attention": attention, "similarity": similarity}[sys.argv[1]]()
