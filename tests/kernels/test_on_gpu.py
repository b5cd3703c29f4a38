"""The operators on a GPU against float64 on the same GPU: every dtype, layout and size, and the same bits twice."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from graphprune.kernels.activation_attention import activation_attention
from graphprune.kernels.channel_similarity import Precision, channel_similarity
from tests.kernels import common

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

SHAPES = [(1, 1, 1, 1), (5, 63, 7, 7), (16, 64, 56, 56), (9, 3, 1, 2049)]
RAGGED = [(64, 3, 7, 7), (63, 70), (257, 2049), (1, 9), (2, 1), (1000, 64), (600, 1, 64, 3), (2048, 512)]


def _activation(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.nn.functional.relu(torch.randn(shape, device="cuda", dtype=dtype) + 0.5)


def _distances(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """As ``common.distances``, for large matrices: from differences, not from products."""
    rows = matrix.double().flatten(1)
    euclidean = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(torch.inf)
    unit = torch.nn.functional.normalize(rows)
    return euclidean, (1 - unit @ unit.T).fill_diagonal_(torch.nan)


def _check(matrices: list[Tensor], precision: Precision = "highest") -> None:
    rtol = common.RTOL_HIGH if precision == "high" else None
    for matrix, found in zip(matrices, channel_similarity(matrices, precision=precision), strict=True):
        if len(matrix) > 1:
            scale = float(matrix.double().flatten(1).norm(dim=1).amax())
            common.assert_similarity(found, *_distances(matrix), scale, matrix.dtype, rtol)


@pytest.mark.parametrize("dtype", common.HALVES_AND_SINGLE, ids=str)
def test_statistics_are_right_in_every_layout(dtype: torch.dtype) -> None:
    a, g = _activation(2, 65, 33, 31, dtype=dtype), torch.randn(2, 65, 33, 31, device="cuda", dtype=dtype)
    plain, expected, others = common.attention(a), common.attention(a, g, 0.25), common.layouts(g)
    with common.poisoned():
        for name, values in common.layouts(a).items():
            common.assert_attention(activation_attention(values), plain, dtype)
            common.assert_attention(activation_attention(values, others[name], tau=0.25), expected, dtype)
        mixed = activation_attention(a, others["channels_last"], tau=0.25)
    common.assert_attention(mixed, expected, dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_are_right_for_sizes_that_fill_tiles_and_sizes_that_do_not(shape: tuple[int, ...], layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        a = common.layouts(_activation(*shape, dtype=dtype))[layout]
        g = torch.randn_like(a)
        with common.poisoned():
            plain, both = activation_attention(a), activation_attention(a, g)
        common.assert_attention(plain, common.attention(a), dtype)
        common.assert_attention(both, common.attention(a, g), dtype)


@pytest.mark.parametrize("shape", [(33, 2049), (4, 50, 96), (2, 5, 3, 4, 6, 2)], ids=str)
def test_statistics_are_right_in_other_numbers_of_dimensions(shape: tuple[int, ...]) -> None:
    a, g = _activation(*shape, dtype=torch.float32), torch.randn(shape, device="cuda")
    for x, y in ((a, g), (a.movedim(1, -1).contiguous().movedim(-1, 1), g), (a.flip(0)[::2], g[::2])):
        common.assert_attention(activation_attention(x, y, tau=0.1), common.attention(x, y, 0.1), x.dtype)
        moved = activation_attention(x.movedim(1, -1), channel_dim=-1)
        common.assert_attention(moved, common.attention(x), x.dtype)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_statistics_are_the_same_bits_in_every_run(layout: str) -> None:
    a = common.layouts(_activation(32, 96, 56, 57, dtype=torch.bfloat16))[layout]
    g = torch.randn(a.shape, device="cuda", dtype=a.dtype)
    runs = [activation_attention(a, g, tau=0.01) for _ in range(3)]
    plain = [activation_attention(a) for _ in range(3)]
    for results in (runs, plain):
        for first, *others in zip(*results, strict=True):
            assert all(first is other is None or torch.equal(first, other) for other in others)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_more_elements_than_32_bits_can_index(layout: str) -> None:
    a = torch.empty(3, 2, 19000, 19000, device="cuda", dtype=torch.bfloat16).normal_()
    assert a.numel() > 2**31
    a = a.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else a
    expected = common.attention(a)
    common.assert_attention(activation_attention(a), expected, a.dtype)
    found = activation_attention(a, a, tau=1.0)  # a * a: what follows from the squares
    common.assert_attention((*found[:6], None, None, None), expected, a.dtype)
    assert found.taylor is not None and found.taylor_abs is not None and found.indicator is not None
    wanted = expected["square_sum"]
    assert bool(((found.taylor.double().sum(0) - wanted).abs() <= common.RTOL[a.dtype] * wanted).all())
    assert bool(((found.taylor_abs.double() - wanted).abs() <= common.RTOL[a.dtype] * wanted).all())
    assert torch.equal(found.indicator[1, -1], (a[:, 1, -1].float().square() > 1.0).sum(0).int())
    assert int(found.indicator.sum()) == sum(int((sample.float().square() > 1.0).sum()) for sample in a)


def test_values_that_are_not_finite_stay_in_their_channel() -> None:
    a = torch.ones(4, 3, 50, device="cuda")
    a[0, 0, 1], a[1, 1, 2] = torch.nan, -torch.inf
    found = activation_attention(a)
    assert found.abs_max.isnan().tolist() == found.sum.isnan().tolist() == [True, False, False]
    assert found.abs_max[1] == torch.inf and found.nonzero.tolist() == [200, 200, 200]


@pytest.mark.parametrize("dtype", common.HALVES_AND_SINGLE, ids=str)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_distances_are_right_for_ragged_batches(precision: Precision, dtype: torch.dtype) -> None:
    with common.poisoned():
        _check([torch.randn(shape, device="cuda", dtype=dtype) for shape in RAGGED], precision)
        _check([torch.randn(40, 7, device="cuda").to(dtype).T], precision)


@pytest.mark.parametrize("rows", [4500, 9000])
def test_matrices_of_more_blocks_than_slots_are_right(rows: int) -> None:
    with common.poisoned():
        _check([torch.randn(rows, 24, device="cuda"), torch.randn(70, 24, device="cuda")])


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_duplicates_find_each_other_at_distance_zero(precision: Precision) -> None:
    matrix = torch.randn(700, 4608, device="cuda") * 0.1 + 3
    matrix[650], matrix[3] = matrix[20], 0
    (found,) = channel_similarity([matrix], precision=precision)
    assert [int(found.neighbour[row]) for row in (20, 650)] == [650, 20]
    assert [float(found.nearest[row]) for row in (20, 650)] == [0, 0] and int((found.nearest == 0).sum()) == 2
    assert float(found.cosine[3]) == 1
    (pair,) = channel_similarity([matrix[:1].repeat(2, 1)], precision=precision)
    assert pair.euclidean.tolist() == pair.nearest.tolist() == [0, 0]


def test_distances_are_the_same_bits_in_every_run() -> None:
    matrices = [torch.randn(shape, device="cuda") for shape in [*RAGGED, (5000, 100)]]
    first, *others = [channel_similarity(matrices) for _ in range(3)]
    for other in others:
        assert all(torch.equal(a, b) for mine, its in zip(first, other, strict=True) for a, b in zip(mine, its, strict=True))


def test_no_memory_of_the_size_of_all_pairs_is_taken() -> None:
    matrix = torch.randn(30000, 64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    channel_similarity([matrix])
    taken = torch.cuda.max_memory_allocated() - before
    assert taken < 6 * matrix.nbytes < 30000 * 30000 * 4 // 50


def test_both_compile_into_one_graph() -> None:
    def scores(a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        found = activation_attention(a * 2, g, tau=0.1)
        (similar,) = channel_similarity([a[0].flatten(1)])
        return found.abs_sum / found.nonzero, similar.euclidean + 1

    a, g = torch.randn(2, 8, 16, 16, device="cuda"), torch.randn(2, 8, 16, 16, device="cuda")
    for compiled, eager in zip(torch.compile(scores, fullgraph=True)(a, g), scores(a, g), strict=True):
        torch.testing.assert_close(compiled, eager)


def test_the_operators_keep_the_contract_of_torch_library() -> None:
    a = torch.randn(2, 3, 4, 5, device="cuda")
    torch.library.opcheck(torch.ops.graphprune.activation_attention.default, (a, 1))
    torch.library.opcheck(torch.ops.graphprune.activation_attention_gradient.default, (a, a, 0.5, 1))
    torch.library.opcheck(torch.ops.graphprune.channel_similarity.default, ([a, torch.randn(3, 2, device="cuda")], "highest"))
