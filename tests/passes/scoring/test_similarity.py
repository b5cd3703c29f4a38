"""``euclidean``, ``cosine`` and ``fpgm``: filters against the other filters of their layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from graphprune.passes.scoring import similarity
from graphprune.passes.scoring.filter_weights import shortened
from graphprune.passes.scoring.similarity import geometric_median, mean_cosine, mean_euclidean, median_distance
from tests.passes.scoring.scored import Floats, chain, images, residual, scored


def euclidean(rows: Tensor) -> Floats:
    count = len(rows)
    return np.array([sum(float((one - other).norm()) for other in rows) / (count - 1) for one in rows])


def cosine(rows: Tensor) -> Floats:
    count, found = len(rows), []
    for i in range(count):
        distances = [1 - float(rows[i] @ rows[j] / (rows[i].norm() * rows[j].norm())) for j in range(count) if j != i]
        found.append(sum(distances) / (count - 1))
    return np.array(found)


def to_median(rows: Tensor) -> Floats:
    """The geometric median by a general minimiser."""
    point = rows.mean(0).clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [point], max_iter=500, tolerance_grad=1e-14, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = (rows - point).norm(dim=1).sum()
        total.backward()
        found: Tensor = total
        return found

    optimiser.step(closure)
    distances: Floats = (rows - point.detach()).norm(dim=1).numpy()
    return distances


BY_HAND: dict[str, Callable[[Tensor], Floats]] = {"euclidean": euclidean, "cosine": cosine, "fpgm": to_median}
CLOSE = {"euclidean": 1e-12, "cosine": 1e-12, "fpgm": 1e-6}


def rows_of(layer: Any) -> Tensor:
    found: Tensor = layer.weight.detach().flatten(1)
    return found


@pytest.mark.parametrize("name", BY_HAND)
def test_by_hand(name: str) -> None:
    model: Any = chain()
    assert scored(model, images(2), name)["a"] == pytest.approx(BY_HAND[name](rows_of(model.a)), rel=CLOSE[name])


@pytest.mark.parametrize("name", BY_HAND)
def test_layers_of_a_group_are_reduced_or_put_side_by_side(name: str) -> None:
    model: Any = residual()
    a, b = rows_of(model.a), rows_of(model.b)
    apart = (BY_HAND[name](a) + BY_HAND[name](b)) / 2
    assert scored(model, images(2), name)["a"] == pytest.approx(apart, rel=CLOSE[name])
    together = BY_HAND[name](torch.cat([a, b], 1))
    assert scored(model, images(2), f"{name}(scope=group)")["a"] == pytest.approx(together, rel=CLOSE[name])


def test_rows_side_by_side_keep_lengths_angles_and_distances_however_long_they_are() -> None:
    """In a basis of the space that they span, though their elements come piece by piece; twins stay twins."""
    whole = torch.randn(6, 50, dtype=torch.float64)
    whole[4] = whole[1]
    found = whole[:, :0]
    for piece in whole.split((3, 2, 30, 1, 14), 1):
        found = shortened([found, piece])
        assert found.shape[1] <= 6
    assert torch.allclose(found @ found.mT, whole @ whole.mT, rtol=1e-12)
    assert float((found[4] - found[1]).norm()) < 1e-12
    short = shortened([whole[:, :3].float(), whole[:, 3:5]])
    assert torch.equal(short, torch.cat([whole[:, :3].float().double(), whole[:, 3:5]], 1))


@pytest.mark.parametrize("name", ["euclidean", "fpgm"])
def test_batch_norms_that_follow_are_folded_on_request(name: str) -> None:
    model: Any = chain()
    factor = (model.norm.weight.abs() / (model.norm.running_var + model.norm.eps).sqrt()).detach()
    wanted = BY_HAND[name](rows_of(model.a) * factor[:, None])
    assert scored(model, images(2), f"{name}(bn_fold=true)")["a"] == pytest.approx(wanted, rel=CLOSE[name])


@pytest.mark.parametrize("name", BY_HAND)
def test_of_two_equal_large_filters_one_goes_first(name: str) -> None:
    """Norms would keep both. One is enough: the rest are apart from each other."""
    model: Any = chain()
    with torch.no_grad():
        model.a.weight.copy_(torch.eye(5, 27, dtype=torch.float64).view(5, 3, 3, 3))
        model.a.weight[3] = model.a.weight[1] = 0.5 * (model.a.weight.sum(0))
    assert scored(model, images(2), name)["a"].argmin() in (1, 3)
    assert scored(model, images(2), "l2(  )")["a"].argmin() not in (1, 3)


def test_lengths_of_filters_do_not_matter_to_cosine_but_to_the_others() -> None:
    model: Any = chain()
    before = {name: scored(model, images(2), name)["a"] for name in BY_HAND}
    with torch.no_grad():
        model.a.weight *= torch.tensor([1.0, 5.0, 0.1, 2.0, 3.0], dtype=torch.float64)[:, None, None, None]
    after = {name: scored(model, images(2), name)["a"] for name in BY_HAND}
    assert after["cosine"] == pytest.approx(before["cosine"], rel=1e-12)
    assert all(not np.allclose(after[name], before[name], rtol=0.05) for name in ("euclidean", "fpgm"))


def test_a_filter_of_zeros_is_at_distance_one_from_all() -> None:
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert mean_cosine(rows).tolist() == pytest.approx([2 / 3, 2 / 3, 1.0, 1.0])


@pytest.mark.parametrize("function", [mean_euclidean, mean_cosine, median_distance])
def test_a_single_filter_has_no_score(function: Callable[[Tensor], Tensor]) -> None:
    assert torch.isnan(function(torch.ones(1, 3))).all() and function(torch.ones(0, 3)).shape == (0,)


@pytest.mark.parametrize("function", [mean_euclidean, median_distance])
def test_blocks_of_rows_change_nothing(function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(23, 7)
    whole = function(rows)
    monkeypatch.setattr(similarity, "_BLOCK", 30)
    assert torch.allclose(function(rows), whole, rtol=1e-12)


def test_the_median_may_be_one_of_the_filters() -> None:
    """Where plain Weiszfeld iterations divide by zero: at a filter that is the median, and at one that is not."""
    star = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
    assert geometric_median(star).tolist() == [0.0, 0.0]
    kite = torch.tensor([[0.0, 0.0], [4.0, 0.0], [-1.0, 1.0], [-3.0, -1.0]])  # the mean is at the first row
    assert float(kite.mean(0).norm()) == 0.0
    median = geometric_median(kite)
    directions = (kite - median) / (kite - median).norm(dim=1, keepdim=True).clamp_min(1e-12)
    others = directions[(kite - median).norm(dim=1) > 1e-6].sum(0).norm()
    assert float(others) <= 1 + 1e-5, "no direction leads to a smaller sum of distances"


def test_fpgm_differs_from_the_mean_distance() -> None:
    """In an elongated layer, the filter nearest to the median need not be the one with the least sum of distances."""
    rows = torch.tensor([[8.0, -1.0], [8.0, 1.0], [-1.0, 2.0], [11.0, -2.0], [5.0, 2.0], [-1.0, -1.0]])
    assert int(median_distance(rows).argmin()) == 1
    assert int(mean_euclidean(rows).argmin()) == 4
