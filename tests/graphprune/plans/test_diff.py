"""Differences of plans: counted index by index, and only between plans for one model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import graphprune
from graphprune.errors import PlanError
from graphprune.plans.diff import diff_plans
from graphprune.plans.plan import Plan

MODEL = {"a.weight": "float32[6, 3]", "a.bias": "float32[6]", "b.weight": "float32[2, 6]", "c.weight": "float32[4, 2]"}


def plan(of_a: list[int], of_c: list[int] | None = None) -> Plan:
    kept: dict[str, dict[int, list[int]]] = {"a.weight": {0: of_a}, "a.bias": {0: of_a}, "b.weight": {1: of_a}}
    return Plan(kept=kept | ({} if of_c is None else {"c.weight": {0: of_c}}), model=MODEL)


def test_indices_are_counted_by_who_keeps_them() -> None:
    found = diff_plans(plan([0, 1, 2, 5]), plan([1, 2, 3], [0, 3]))
    first, second = found.axes
    assert (first.tensor, first.axis, first.size) == ("a.weight", 0, 6)
    assert (first.both, first.only_a, first.only_b, first.jaccard) == (2, 2, 1, 2 / 5)
    assert first.alike == (("b.weight", 1), ("a.bias", 0))
    assert (second.tensor, second.both, second.only_a, second.only_b) == ("c.weight", 2, 2, 0)  # A keeps all of it
    assert found.jaccard == (2 + 2) / (5 + 4) and not found.same


def test_totals_are_those_of_the_tensors_that_are_left() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    results = [graphprune.prune(model, torch.zeros(2, 8), target=f"channels={share}") for share in (0.5, 0.25)]
    found = diff_plans(results[0].plan, results[1].plan)
    wanted = [sum(t.numel() for t in one.state_dict().values()) for one in (model, results[0].model, results[1].model)]
    assert [found.original, found.a, found.b] == wanted
    assert found.axes[0].only_b == 0 and found.axes[0].both == 4  # the smaller one is a part of the larger


def test_a_plan_is_as_itself() -> None:
    found = diff_plans(plan([0, 4]), plan([0, 4]))
    assert found.same and found.jaccard == 1 and found.a == found.b
    assert diff_plans(Plan(kept={}, model=MODEL), Plan(kept={}, model=MODEL)).jaccard == 1


def test_the_difference_turns_around_with_the_plans() -> None:
    generator = np.random.default_rng(0)
    for _ in range(10):
        lists = [sorted(generator.choice(6, size, replace=False).tolist()) for size in generator.integers(1, 6, 2)]
        there, back = diff_plans(plan(lists[0]), plan(lists[1])), diff_plans(plan(lists[1]), plan(lists[0]))
        assert [(x.both, x.only_a, x.only_b) for x in there.axes] == [(x.both, x.only_b, x.only_a) for x in back.axes]
        assert there.jaccard == len(set(lists[0]) & set(lists[1])) / len(set(lists[0]) | set(lists[1]))


@pytest.mark.parametrize("other", [MODEL | {"b.weight": "float32[2, 7]"}, MODEL | {"d.weight": "float32[1]"}])
def test_plans_for_two_models_are_refused_with_the_first_difference(other: dict[str, str]) -> None:
    with pytest.raises(PlanError, match=r"two models: (b|d)\.weight is (float32\[2, 6\]|missing) in that of A and float32"):
        diff_plans(plan([0]), Plan(kept={}, model=other))


@pytest.mark.parametrize(
    "kept", [{"gone": {0: [1]}}, {"c.weight": {5: [0]}}, {"c.weight": {0: [1, 0]}}, {"c.weight": {0: [4]}}, {"c.weight": {0: []}}]
)
def test_a_plan_that_keeps_what_its_model_lacks_is_refused(kept: dict[str, dict[int, list[int]]]) -> None:
    with pytest.raises(PlanError, match="Plan B contradicts itself"):
        diff_plans(plan([0]), Plan(kept=kept, model=MODEL))


def test_a_size_that_is_absurd_takes_no_memory() -> None:
    """A file may say that a model is as large as it likes."""
    model = {"a.weight": f"float32[{10**15}]"}
    found = diff_plans(Plan(kept={"a.weight": {0: [1, 3]}}, model=model), Plan(kept={}, model=model))
    assert (found.axes[0].both, found.axes[0].only_a, found.axes[0].only_b) == (2, 0, 10**15 - 2)
