"""Random knapsacks, and brute force over all their choices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from graphprune.passes.selection.solvers.problem import Constraint, Floats, Pair

Problem = tuple[list[Floats], list[Floats], float]


def random_problem(random: np.random.Generator, *, groups: int = 4, width: int = 5, negative: bool = False) -> Problem:
    """Small integers, so that ties and zeros are common; the budget lies anywhere, at times below every choice."""
    sizes = random.integers(1, width + 1, size=int(random.integers(1, groups + 1)))
    values = [random.integers(-2 if negative else 0, 8, size=size).astype(float) for size in sizes]
    costs = [random.integers(-6 if negative else 0, 9, size=size).astype(float) for size in sizes]
    least, most = sum(cost.min() for cost in costs), sum(cost.max() for cost in costs)
    return values, costs, float(random.integers(int(least) - 2, int(most) + 3))


def every_choice(sizes: Sequence[int]) -> npt.NDArray[np.int64]:
    """All choices of one candidate for each group; shape (choices, groups)."""
    return np.array(list(product(*map(range, sizes))), dtype=np.int64)


def best_value(values: Sequence[Floats], constraints: Sequence[Constraint]) -> float | None:
    """The most that a choice within the constraints is worth, by trying all; None if there is none."""
    choices = every_choice([value.size for value in values])
    fits = np.ones(len(choices), dtype=bool)
    for constraint in constraints:
        cost = sum(part[choices[:, group]] for group, part in enumerate(constraint.costs))
        for pair in constraint.pairs:
            cost = cost + pair.costs[choices[:, pair.first], choices[:, pair.second]]
        fits &= cost <= constraint.limit
    worth = sum(value[choices[:, group]] for group, value in enumerate(values))
    return float(np.asarray(worth)[fits].max()) if fits.any() else None


def random_pairs(random: np.random.Generator, values: Sequence[Floats], links: Sequence[tuple[int, int]]) -> tuple[Pair, ...]:
    return tuple(Pair(a, b, random.integers(-4, 7, size=(values[a].size, values[b].size)).astype(float)) for a, b in links)


NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3)) | st.integers(-5, 5).map(float)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Any numbers at all."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    values, costs = ([np.array(draw(st.lists(NUMBERS, min_size=n, max_size=n))) for n in sizes] for _ in range(2))
    return values, costs, draw(NUMBERS)
