"""Scores: norms over every slice of a unit, reduced over members and normalised within groups, against plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import graphprune
from graphprune.criteria import ScoringContext, find_criterion
from graphprune.errors import UsageError
from graphprune.ir.twins import named_tensors
from graphprune.passes.scoring.score import ScorePass, check_finite, normalised
from tests.checking import Analysed, analyse
from tests.zoo.case import net

POWERS = {"l1": 1, "l2": 2}


def residual() -> Analysed:
    """A group with five parameter axes and a two-fold member (a concatenation with itself), and buffers."""

    def forward(self: Any, x: Tensor) -> Any:
        y = self.norm(self.a(x))
        y = y + self.b(F.relu(y))
        return self.head(torch.cat([y, y], 1))

    model = net(forward, a=nn.Linear(4, 6), norm=nn.BatchNorm1d(6), b=nn.Linear(6, 6), head=nn.Linear(12, 2))
    return analyse(model, torch.zeros(2, 4, dtype=torch.float64))


def by_hand(found: Analysed, power: int, reduction: str) -> dict[int, float]:
    """Every unit's slices, one after another."""
    parameters = dict(found.model.named_parameters())
    values: dict[int, list[float]] = {}
    for name, parameter in parameters.items():
        value = found.groups.trace.parameters[name]
        for axis in range(parameter.dim()):
            field = value.on(axis)
            if field is None:
                continue
            units = found.groups.unit_of[field.ravel()]
            for unit in set(units.tolist()):
                part = parameter.detach().index_select(axis, torch.tensor(np.flatnonzero(units == unit)))
                values.setdefault(unit, []).append(float(part.abs().pow(power).sum() ** (1 / power)))
    reduce: Any = {"sum": sum, "max": max, "mean": lambda v: sum(v) / len(v), "l2": lambda v: sum(x * x for x in v) ** 0.5}[
        reduction
    ]
    return {unit: float(reduce(parts)) for unit, parts in values.items()}


@pytest.mark.parametrize("reduction", ["sum", "mean", "max", "l2"])
@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_norms_over_whole_units(criterion: str, reduction: str) -> None:
    found = residual()
    values = find_criterion(criterion)(ScoringContext(found.program, found.groups, reduction))
    wanted = by_hand(found, POWERS[criterion], reduction)
    for group in found.groups.prunable:
        for unit in group.units.tolist():
            assert values[unit] == pytest.approx(wanted[unit], rel=1e-12)
    assert values.shape == (found.groups.unit_count,) and values.dtype == np.float64


def test_a_weight_that_grows_makes_its_unit_more_important() -> None:
    found = residual()
    context = ScoringContext(found.program, found.groups)
    before = find_criterion("l2")(context).copy()
    with torch.no_grad():
        named_tensors(found.model)["head.weight"][:, 2] *= 100
    after = find_criterion("l2")(context)
    changed = np.flatnonzero(~np.isclose(before, after, equal_nan=True))
    group = found.groups.prunable[0]
    assert set(changed.tolist()) & set(group.units.tolist()) == {int(group.units[2])}
    assert after[group.units[2]] > before[group.units[2]]


@pytest.mark.parametrize("how", ["none", "mean", "max", "gaussian"])
def test_normalisation_within_groups(how: str) -> None:
    found = residual()
    values = find_criterion("l2")(ScoringContext(found.program, found.groups))
    result = normalised(values, found.groups, how)
    for group in found.groups.prunable:
        raw, got = values[group.units], result[group.units]
        assert (np.argsort(raw, kind="stable") == np.argsort(got, kind="stable")).all(), "order is kept"
        checks = {"none": np.allclose(got, raw), "mean": np.isclose(got.mean(), 1), "max": np.isclose(got.max(), 1)}
        checks["gaussian"] = np.isclose(got.mean(), 0) and np.isclose(got.std(), 1)
        assert checks[how]


@pytest.mark.parametrize("how", ["mean", "max", "gaussian"])
def test_a_group_of_zeros_is_not_divided_by_zero(how: str) -> None:
    found = residual()
    values = np.zeros(found.groups.unit_count)
    assert np.isfinite(normalised(values, found.groups, how)).all()


def test_random_scores_are_reproducible() -> None:
    found = residual()
    one, same, other = (find_criterion("random")(ScoringContext(found.program, found.groups, seed=s)) for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    found = residual()
    with torch.no_grad():
        found.model.b.weight[1, 1] = bad
    with pytest.raises(UsageError, match=r"b\.weight holds NaN or infinite"):
        graphprune.prune(found.model, found.inputs, target="channels=50%")


def test_weights_whose_sum_overflows_are_finite() -> None:
    module = nn.Linear(4, 4)
    nn.init.constant_(module.weight, 3e38)
    check_finite(dict(module.named_parameters()))


def test_provenance_says_how_scores_were_made() -> None:
    found = residual()
    plan = graphprune.prune(found.model, found.inputs, target="channels=50%", criterion="l1", reduction="max", verify=False).plan
    assert plan.scores == {"l1": {"criterion": "l1", "reduction": "max", "normalise": "max", "share": "none", "seed": "0"}}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reduction": "median"}, r"score{reduction=median} is not known; did you mean 'mean'\? Choose from default, "),
        ({"normalise": None}, r"score{normalise=None} is not known; did you mean 'none'\? Choose from none, "),
        ({"share": "x"}, r"score{share=x} is not known\. Choose from none, "),
    ],
)
def test_unknown_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ScorePass(**options)


def test_an_unknown_criterion_names_its_neighbours() -> None:
    with pytest.raises(UsageError, match=r"There is no criterion .l3"):
        find_criterion("l3")


def test_weights_without_values_are_refused_and_inputs_may_be_anywhere() -> None:
    """A model on the meta device has nothing to rank; only shapes of example inputs matter, so theirs may be meta."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    result = graphprune.prune(model, torch.zeros(1, 4, device="meta"), target="channels=50%")
    assert result.report.verification is not None and result.report.verification.passed
    with pytest.raises(UsageError, match=r"0\.weight is on the meta device and has no values"):
        graphprune.prune(model.to("meta"), torch.zeros(1, 4), target="channels=50%")
