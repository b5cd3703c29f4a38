"""Sensitivity: each group cut by itself, measured as it is, and a run that was interrupted goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import UsageError
from graphprune.surveys.curves import CutPoint, Sensitivity, sensitivity

X = torch.randn(16, 6, dtype=torch.float64)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)).double()


def loss(model: nn.Module) -> float:
    return float(model(X).square().mean().detach())


def test_a_point_is_the_measure_of_the_model_without_the_weakest_units_of_one_group() -> None:
    """Against zeros in the weights that make and read them."""
    model = net()
    found = sensitivity(model, X[:1], loss, ratios=(0.25, 0.5))
    assert found.baseline == pytest.approx(loss(model), rel=1e-12)
    assert [(p.group, p.ratio, p.kept) for p in found.points] == [("0", 0.25, 6), ("0", 0.5, 4), ("2", 0.25, 4), ("2", 0.5, 3)]
    for point in found.points:
        masked, layer = net(), int(point.group)
        gone = _weakest(model, layer, point.kept)
        masked.get_parameter(f"{layer + 2}.weight").data[:, gone] = 0
        assert point.value == pytest.approx(loss(masked), rel=1e-10)


def test_what_was_found_prints_the_deepest_cuts_the_worst_first() -> None:
    points = [("a", 0.5, 4, 1.5), ("a", 0.25, 6, 9.0), ("b", 0.5, 3, 0.2)]
    made = [CutPoint(group=group, ratio=ratio, kept=kept, value=value) for group, ratio, kept, value in points]
    found = Sensitivity(model={}, settings={}, baseline=1.0, points=made)
    first, _, *rows = str(found).splitlines()
    assert first.startswith("1 uncut")
    assert [row.split() for row in rows] == [["b", "50%", "3", "0.2"], ["a", "50%", "4", "1.5"]]


def _weakest(model: nn.Module, layer: int, kept: int) -> list[int]:
    """The units that graphprune's own selection takes from a group, when all others are excluded."""
    (other,) = {0, 2} - {layer}
    size = len(model.get_parameter(f"{layer}.bias"))
    slim = graphprune.prune(model, X[:1], target=f"channels={kept / size}", exclude=[f"{other}.weight[0]"])
    return sorted(set(range(size)) - set(slim.plan.kept[f"{layer}.weight"][0]))


def test_only_the_groups_asked_for_are_cut_and_never_to_nothing() -> None:
    found = sensitivity(net(), X[:1], loss, ratios=(0.01, 0.99), groups=["2"])
    assert found.groups == ["0", "2"]  # layer 2 reads one group and makes another
    assert [point.kept for point in found.points] == [8, 1, 5, 1]
    assert found.curve("2")[0.01] == found.baseline


def test_a_run_that_was_interrupted_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    whole = sensitivity(net(), X[:1], loss)
    calls = 0

    def interrupted(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss(model)

    file = tmp_path / "found.json"
    with pytest.raises(KeyboardInterrupt):
        sensitivity(net(), X[:1], interrupted, save=lambda found: found.save(file))
    known = Sensitivity.load(file)
    assert 0 < len(known.points) < len(whole.points)
    assert sensitivity(net(), X[:1], loss, known=known) == whole


def test_another_run_is_not_gone_on_from() -> None:
    known = sensitivity(net(), X[:1], loss, ratios=(0.5,))
    with pytest.raises(UsageError, match="measured with criterion 'l2', not 'l1'"):
        sensitivity(net(), X[:1], loss, criterion="l1", known=known)
    with pytest.raises(UsageError, match="measured with measure '', not 'loss'"):
        sensitivity(net(), X[:1], loss, measure="loss", known=known)
    with pytest.raises(UsageError, match="of another model"):
        sensitivity(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).double(), X[:1], loss, known=known)


@pytest.mark.parametrize("ratios", [(0.0,), (0.5, 1.0), (-1,), ()])
def test_ratios_out_of_range_are_refused(ratios: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="between 0 and 1"):
        sensitivity(net(), X[:1], loss, ratios=ratios)


def test_the_curves_are_drawn() -> None:
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    found = sensitivity(net(), X[:1], loss, ratios=(0.5, 0.25))
    (axes,) = found.plot().axes
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines[1:]}
    assert set(drawn) == {"0", "2"}
    np.testing.assert_array_equal(drawn["0"], [(0, found.baseline), (0.25, found.curve("0")[0.25]), (0.5, found.curve("0")[0.5])])
    pyplot.close("all")
