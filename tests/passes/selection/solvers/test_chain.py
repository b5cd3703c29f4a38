"""Costs of neighbours on a chain: the dynamic programme finds what HiGHS and brute force find, and refuses what is no chain."""

from __future__ import annotations

import numpy as np
import pytest

from graphprune.errors import TargetError, UsageError
from graphprune.passes.selection.solvers import dynamic, mixed_integer
from graphprune.passes.selection.solvers.chain import is_chain, solve
from graphprune.passes.selection.solvers.problem import Constraint, total
from tests.passes.selection.solvers.knapsacks import best_value, random_pairs, random_problem

CHAINS = [[(0, 1), (1, 2), (2, 3)], [(2, 0), (3, 2)], [(1, 3), (1, 0), (3, 1)], []]


@pytest.mark.parametrize("links", CHAINS)
def test_chains_in_any_order_and_direction(links: list[tuple[int, int]]) -> None:
    """Single groups, several chains, and a pair that is given both ways round are chains too."""
    for seed in range(150):
        random = np.random.default_rng(seed)
        values = [random.integers(0, 8, size=random.integers(1, 5)).astype(float) for _ in range(4)]
        costs = tuple(random.integers(-3, 6, size=value.size).astype(float) for value in values)
        constraint = Constraint(costs, float(random.integers(-12, 30)), random_pairs(random, values, links))
        wanted = best_value(values, [constraint])
        if wanted is None:
            with pytest.raises(TargetError):
                solve(values, constraint)
            continue
        items = solve(values, constraint)
        assert constraint.cost(items) <= constraint.limit
        assert total(values, items) == pytest.approx(wanted, abs=1e-9)
        if seed < 20:
            assert total(values, mixed_integer.solve(values, [constraint])) == pytest.approx(wanted, abs=1e-9)


def test_without_pairs_it_is_the_plain_knapsack() -> None:
    for seed in range(100):
        values, costs, budget = random_problem(np.random.default_rng(seed))
        if best_value(values, [Constraint(tuple(costs), budget)]) is not None:
            ours = total(values, solve(values, Constraint(tuple(costs), budget)))
            assert ours == pytest.approx(total(values, dynamic.solve(values, costs, budget)))


def test_few_buckets_round_up() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        values = [random.random(4) for _ in range(3)]
        costs = tuple(random.random(4) for _ in range(3))
        pairs = random_pairs(random, values, [(0, 1), (1, 2)])
        constraint = Constraint(costs, 4.0, pairs)
        if best_value(values, [Constraint(costs, 3.0, pairs)]) is not None:
            assert constraint.cost(solve(values, constraint, buckets=50)) <= 4.0


@pytest.mark.parametrize("links", [[(0, 1), (1, 2), (2, 0)], [(0, 1), (0, 2), (0, 3)], [(0, 0)]])
def test_rings_and_stars_are_no_chains(links: list[tuple[int, int]]) -> None:
    values = [np.zeros(2)] * 4
    pairs = random_pairs(np.random.default_rng(0), values, links)
    assert not is_chain(pairs)
    with pytest.raises(UsageError, match="Use solver=milp"):
        solve(values, Constraint((np.zeros(2),) * 4, 1.0, pairs))
