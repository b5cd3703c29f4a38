"""The dynamic programme finds the optimum of brute force and keeps to the budget whatever is rounded; the printed one errs."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given

from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.solvers.dynamic import solve, tabulate
from graphprune.passes.selection.solvers.problem import Constraint, Floats, total
from tests.passes.selection.solvers.knapsacks import Problem, best_value, problems, random_problem


def optimum(problem: Problem) -> float | None:
    values, costs, budget = problem
    return best_value(values, [Constraint(tuple(costs), budget)])


@pytest.mark.parametrize("negative", [False, True])
def test_the_optimum_is_that_of_brute_force(negative: bool) -> None:
    """2,000 instances of each kind, with ties, zeros, single candidates, and budgets that nothing meets."""
    seen: Counter[str] = Counter()
    for seed in range(2000):
        values, costs, budget = problem = random_problem(np.random.default_rng(seed), negative=negative)
        wanted = optimum(problem)
        seen["none" if wanted is None else "some"] += 1
        if wanted is None:
            with pytest.raises(TargetError, match="the cheapest costs"):
                solve(values, costs, budget)
            continue
        items = solve(values, costs, budget)
        assert total(costs, items) <= budget
        assert total(values, items) == pytest.approx(wanted, abs=1e-9)
    assert min(seen.values()) > 20, "both kinds occur"


@given(problems())
def test_any_numbers_keep_to_the_budget_and_are_as_good_as_a_budget_less_the_rounding(problem: Problem) -> None:
    """Rounding up costs at most a bucket for each group: what that much less would buy is still bought."""
    values, costs, budget = problem
    buckets = 5000
    try:
        items = solve(values, costs, budget, buckets)
    except TargetError:
        assert optimum(problem) is None
        return
    assert total(costs, items) <= budget + 1e-9
    room = budget - sum(cost.min() for cost in costs)
    sure = optimum((values, costs, budget - room * len(costs) / buckets))
    assert sure is None or total(values, items) >= sure - 1e-9


def test_one_table_answers_every_budget() -> None:
    for seed in range(50):
        values, costs, _ = random_problem(np.random.default_rng(seed), negative=True)
        most = float(sum(cost.max() for cost in costs))
        table = tabulate(values, costs, most)
        for budget in range(int(table.scale.base), int(most) + 1):
            items = table.choose(float(budget))
            assert total(costs, items) <= budget
            assert total(values, items) == pytest.approx(optimum((values, costs, float(budget))), abs=1e-9)
        with pytest.raises(TargetError):
            table.choose(table.scale.base - 1)


def test_fewer_buckets_never_exceed_the_budget() -> None:
    """Rounded to the nearest or down, costs of 1.4 would be 1, and three of them would fit a budget of 4."""
    values, costs = [np.array([0.0, 1.0])] * 3, [np.array([0.0, 1.4])] * 3
    assert total(costs, solve(values, costs, 4.0, buckets=4)) <= 4.0
    assert total(values, solve(values, costs, 4.0, buckets=4)) == 2.0


def test_of_equals_the_cheaper_and_narrower_is_chosen() -> None:
    values, costs = [np.array([0.0, 5.0, 5.0, 5.0])] * 2, [np.array([0.0, 2.0, 2.0, 1.0])] * 2
    assert solve(values, costs, 100.0).tolist() == [3, 3]
    assert solve([np.array([1.0, 1.0])], [np.array([0.0, 0.0])], 0.0).tolist() == [0]


def test_huge_and_tiny_costs_do_not_overflow() -> None:
    values, costs = [np.arange(3.0)] * 2, [np.array([0.0, 1e-9, 1e300])] * 2
    assert solve(values, costs, 1.0).tolist() == [1, 1]
    assert solve(values, costs, 1e301).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("values", "costs"),
    [
        ([np.zeros(2)], [np.zeros(3)]),
        ([np.zeros(2)], [np.zeros(2), np.zeros(2)]),
        ([np.zeros(0)], [np.zeros(0)]),
        ([np.array([np.nan])], [np.zeros(1)]),
        ([np.zeros(1)], [np.array([np.inf])]),
    ],
)
def test_what_is_no_knapsack_is_refused(values: list[Floats], costs: list[Floats]) -> None:
    with pytest.raises(UsageError, match="A knapsack needs"):
        solve(values, costs, 1.0)


# ------------------------------------------------------------------------------------------- the algorithm as printed


def printed(values: list[Floats], costs: list[Floats], budget: int) -> tuple[float, list[int | None], float]:
    """Algorithm 1 of "Layer-adaptive structured pruning guided by latency" as it stands in the paper, with arrays that its loops
    fit: the best value that it claims, what it selects, and what that costs."""
    layers = len(values)
    best = np.zeros((layers + 1, budget + 1))
    for layer in range(1, layers + 1):
        for c in range(1, budget + 1):
            best[layer, c] = best[layer - 1, c]
            for value, cost in zip(values[layer - 1].tolist(), costs[layer - 1].astype(int).tolist(), strict=True):
                # Against the layer before, so the last that is an improvement replaces the best one.
                if cost <= c and best[layer - 1, c] < best[layer - 1, c - cost] + value:
                    best[layer, c] = best[layer - 1, c - cost] + value
    selected: list[int | None] = [None] * layers
    claimed, left, spent = float(best[layers, budget]), budget, 0.0
    for layer in range(layers, 0, -1):
        if left >= 0 and best[layer, left] > best[layer - 1, left]:
            for candidate, cost in enumerate(costs[layer - 1].astype(int).tolist()):  # all of them: no test and no break
                selected[layer - 1] = candidate
                left -= cost
        spent += 0.0 if (item := selected[layer - 1]) is None else float(costs[layer - 1][item])
    return claimed, selected, spent


def verdict(problem: Problem) -> str:
    """What becomes of the printed algorithm on an instance that has a solution."""
    values, costs, budget = problem
    try:
        claimed, selected, spent = printed(values, costs, int(budget))
    except IndexError:
        return "crash"
    if claimed != optimum(problem):
        return "wrong optimum"
    if spent > budget:
        return "over budget"
    worth = sum(values[layer][item] for layer, item in enumerate(selected) if item is not None)
    return "right" if worth == claimed else "suboptimal selection"


@pytest.mark.parametrize("negative", [False, True])
def test_the_printed_algorithm_errs_where_this_one_does_not(negative: bool) -> None:
    """Of 2,000 instances with rising values and costs from an item (0, 0) on, as the paper has them."""
    found: Counter[str] = Counter()
    for seed in range(2000):
        random = np.random.default_rng(seed)
        sizes = random.integers(2, 6, size=int(random.integers(2, 5)))
        values = [np.concatenate([[0.0], np.cumsum(random.integers(1, 6, size=n - 1))]) for n in sizes]
        steps = [random.integers(-3 if negative else 0, 6, size=n - 1) for n in sizes]
        costs = [np.concatenate([[0.0], np.cumsum(step)]).astype(float) for step in steps]
        problem = values, costs, float(random.integers(1, 20))
        found[verdict(problem)] += 1
        wanted = optimum(problem)
        assert wanted is not None and total(values, solve(*problem)) == wanted
        assert total(costs, solve(*problem)) <= problem[2]
    assert min(found["wrong optimum"], found["over budget"], found["suboptimal selection"]) > 20, found
    assert (found["crash"] > 100) == negative and found["right"] < 1000, found
