"""HiGHS finds what brute force and the dynamic programme find: one constraint or several, alone or with costs of pairs."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import CheckError, TargetError
from graphprune.passes.selection.solvers import dynamic
from graphprune.passes.selection.solvers.mixed_integer import solve
from graphprune.passes.selection.solvers.problem import Constraint, Floats, Pair, total
from tests.passes.selection.solvers.knapsacks import best_value, random_pairs, random_problem


def check(values: list[Floats], constraints: list[Constraint]) -> None:
    wanted = best_value(values, constraints)
    if wanted is None:
        with pytest.raises(TargetError):
            solve(values, constraints)
        return
    items = solve(values, constraints)
    assert all(constraint.cost(items) <= constraint.limit for constraint in constraints)
    assert total(values, items) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("negative", [False, True])
def test_one_constraint_as_dynamic_and_brute_force(negative: bool) -> None:
    for seed in range(300):
        values, costs, budget = random_problem(np.random.default_rng(seed), negative=negative)
        check(values, [Constraint(tuple(costs), budget)])
        if best_value(values, [Constraint(tuple(costs), budget)]) is not None:
            ours = total(values, dynamic.solve(values, costs, budget))
            assert ours == pytest.approx(total(values, solve(values, [Constraint(tuple(costs), budget)])), abs=1e-9)


def test_several_constraints_at_once() -> None:
    for seed in range(200):
        random = np.random.default_rng(seed)
        values, costs, budget = random_problem(random, negative=True)
        others = [random.integers(-3, 9, size=cost.size).astype(float) for cost in costs]
        check(values, [Constraint(tuple(costs), budget), Constraint(tuple(others), float(random.integers(0, 20)))])


@pytest.mark.parametrize("links", [[(0, 1), (1, 2)], [(0, 1), (1, 2), (2, 0)], [(2, 0), (0, 2), (1, 2)]])
def test_costs_of_pairs_on_any_graph(links: list[tuple[int, int]]) -> None:
    for seed in range(60):
        random = np.random.default_rng(seed)
        values = [random.integers(0, 8, size=random.integers(1, 5)).astype(float) for _ in range(3)]
        costs = tuple(random.integers(-3, 6, size=value.size).astype(float) for value in values)
        pairs = random_pairs(random, values, links)
        check(values, [Constraint(costs, float(random.integers(-8, 25)), pairs)])


def test_a_budget_is_kept_where_costs_differ_by_less_than_the_solver_s_tolerance() -> None:
    """Costs that exceed the budget by 3e-7 of it: within HiGHS's own tolerance on an unscaled row."""
    values, costs = [np.array([0.0, 1.0, 2.0])], (np.array([0.0, 1.0, 1.0 + 3e-7]),)
    assert solve(values, [Constraint(costs, 1.0)]).tolist() == [1]
    assert solve(values, [Constraint(costs, 1.0 + 3e-7)]).tolist() == [2]


def test_running_out_of_time_is_an_error_that_says_what_to_do() -> None:
    random = np.random.default_rng(0)
    values = [random.random(40) for _ in range(6)]
    zeros = tuple(np.zeros(40) for _ in range(6))
    pairs = tuple(Pair(a, b, random.random((40, 40))) for a in range(6) for b in range(a))
    with pytest.raises(CheckError, match="without a proven optimum"):
        solve(values, [Constraint(zeros, 4.0, pairs)], time_limit=0.05)
