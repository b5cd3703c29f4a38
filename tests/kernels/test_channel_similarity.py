"""Distances between rows on a CPU: right for ragged batches, duplicates found, memory bounded, and an operator that compiles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from graphprune.kernels.channel_similarity import channel_similarity, reference
from tests.kernels import common

DTYPES = (*common.HALVES_AND_SINGLE, torch.float64)
SHAPES = [(5, 3, 3, 3), (63, 70), (2, 1), (17, 2049), (130, 9)]


def _check(matrices: list[Tensor]) -> None:
    for matrix, found in zip(matrices, channel_similarity(matrices), strict=True):
        scale = float(matrix.double().flatten(1).norm(dim=1).amax())
        common.assert_similarity(found, *common.distances(matrix), scale, matrix.dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_distances_are_those_of_a_plain_loop_for_ragged_batches(dtype: torch.dtype) -> None:
    with common.poisoned():
        _check([torch.randn(shape, dtype=torch.float64).to(dtype) for shape in SHAPES])


def test_the_comparison_sees_a_wrong_result() -> None:
    """The negative twin: a mean that is off, a neighbour that is not nearest, a distance that is another's."""
    matrix = torch.randn(6, 9)
    (found,) = channel_similarity([matrix])
    euclidean, cosine = common.distances(matrix)
    far = euclidean.masked_fill(euclidean.isinf(), 0).argmax(1)
    for wrong in (
        found._replace(euclidean=found.euclidean * 1.001),
        found._replace(cosine=found.cosine + 0.001),
        found._replace(neighbour=far, nearest=euclidean.gather(1, far[:, None])[:, 0]),
        found._replace(nearest=found.nearest + 0.01),
    ):
        with pytest.raises(AssertionError):
            common.assert_similarity(wrong, euclidean, cosine, 3.0, matrix.dtype)


@pytest.mark.parametrize("block", [1, 100, reference.BLOCK])
def test_results_do_not_depend_on_the_layout_or_on_the_blocks(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", block)
    matrix = torch.randn(12, 4, 6, 5, dtype=torch.float64)
    _check(list(common.layouts(matrix).values()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_duplicates_find_each_other_at_distance_zero_although_rows_are_long_and_alike(dtype: torch.dtype) -> None:
    matrix = (torch.randn(40, 300, dtype=torch.float64) + 30).to(dtype)
    matrix[31] = matrix[4]
    (found,) = channel_similarity([matrix])
    assert found.neighbour[4] == 31 and found.neighbour[31] == 4
    assert found.nearest[4] == 0 and found.nearest[31] == 0 and bool((found.nearest[:4] > 1).all())
    _check([matrix])


def test_two_rows_that_are_the_same_are_at_mean_distance_zero() -> None:
    (found,) = channel_similarity([torch.randn(1, 50).repeat(2, 1)])
    assert found.euclidean.tolist() == [0, 0] and found.neighbour.tolist() == [1, 0]
    assert bool((found.cosine.abs() < 1e-6).all())


def test_a_row_of_zeros_is_at_cosine_distance_one_of_all_others() -> None:
    matrix = torch.randn(5, 8, dtype=torch.float64)
    matrix[2] = 0
    (found,) = channel_similarity([matrix])
    assert found.cosine[2] == 1
    (nothing,) = channel_similarity([torch.zeros(3, 4)])
    assert (
        nothing.cosine.tolist() == [1, 1, 1] and nothing.euclidean.tolist() == [0, 0, 0] and nothing.nearest.tolist() == [0, 0, 0]
    )


def test_rows_without_others_and_matrices_without_rows_or_columns() -> None:
    alone, none, flat = channel_similarity([torch.randn(1, 3), torch.randn(0, 3), torch.randn(3, 0)])
    assert alone.euclidean.item() == alone.cosine.item() == alone.nearest.item() == torch.inf and alone.neighbour.item() == -1
    assert [len(column) for column in none] == [0, 0, 0, 0]
    assert flat.euclidean.tolist() == [0, 0, 0] and flat.neighbour.tolist() == [1, 0, 0]
    assert channel_similarity([]) == []


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_the_scale_of_a_matrix_does_not_matter(scale: float) -> None:
    _check([torch.randn(9, 30) * scale])


def test_a_value_that_is_not_finite_does_not_pass_for_a_distance() -> None:
    matrix = torch.randn(4, 3)
    matrix[1, 1] = torch.nan
    (found,) = channel_similarity([matrix])
    assert bool(found.euclidean.isnan().all())


def test_no_matrix_of_distances_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "BLOCK", 512)
    sizes: list[int] = []
    addmm = torch.addmm

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        made = addmm(*args, **kwargs)
        sizes.append(made.numel())
        return made

    monkeypatch.setattr(torch, "addmm", watched)
    _check([torch.randn(70, 5)])
    assert sizes and max(sizes) <= 512 < 70 * 70


def test_arguments_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TypeError, match=r"floating point matrices, but this one is torch\.int64"):
        channel_similarity([torch.ones(2, 2, dtype=torch.int64)])
    with pytest.raises(ValueError, match="must be alike"):
        channel_similarity([torch.ones(2, 2), torch.ones(2, 2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="this one is a scalar"):
        channel_similarity([torch.tensor(1.0)])
    with pytest.raises(ValueError, match="must be one of highest, high, but is 'low'"):
        channel_similarity([torch.ones(2, 2)], precision="low")  # type: ignore[arg-type]


def test_the_operator_keeps_the_contract_of_torch_library() -> None:
    torch.library.opcheck(torch.ops.graphprune.channel_similarity.default, ([torch.randn(4, 3), torch.randn(3, 2, 2)], "highest"))


def test_it_compiles_into_one_graph() -> None:
    def redundant(a: Tensor, b: Tensor) -> list[Tensor]:
        return [found.euclidean.argmin() for found in channel_similarity([a * 2, b])]

    matrices = torch.randn(6, 4), torch.randn(5, 3, 3)
    compiled = torch.compile(redundant, fullgraph=True, backend="aot_eager")
    assert [int(row) for row in compiled(*matrices)] == [int(row) for row in redundant(*matrices)]
