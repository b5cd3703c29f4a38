"""The group knapsack as a mixed-integer linear programme, solved by HiGHS: several constraints, and costs of pairs of groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, milp
from scipy.sparse import block_diag, coo_array, csr_array, hstack, kron, vstack
from scipy.sparse import eye_array as identity

from graphprune.errors import CheckError, TargetError
from graphprune.passes.selection.solvers.problem import Constraint, Floats, Ints, check_shapes, no_choice

_RANGE = 1e4  # what rows are scaled to: HiGHS takes a row as met that is exceeded by 1e-6
_TRIES = 20
_INFEASIBLE = 2  # status of scipy


def solve(values: Sequence[Floats], constraints: Sequence[Constraint], time_limit: float = 60.0, gap: float = 0.0) -> Ints:
    """One candidate of each group, for the most value within all constraints.

    A binary variable stands for each candidate, and those of a group add to one. A pair of groups has a variable z >= 0 for each
    pair of candidates whose sums along either axis are the binaries of the other: once these are 0 or 1, z is their product.
    gap: how far the value may be from the optimum, relative to it. Raises TargetError if no choice fits, and CheckError if HiGHS
    has no proven optimum after ``time_limit`` seconds.
    """
    for constraint in constraints:
        check_shapes(values, constraint.costs)
    limits = [constraint.limit for constraint in constraints]
    for _ in range(_TRIES):
        tightened = [replace(constraint, limit=limit) for constraint, limit in zip(constraints, limits, strict=True)]
        items = _solved(values, tightened, time_limit, gap)
        over = [constraint.cost(items) > constraint.limit for constraint in constraints]
        if not any(over):
            return items
        # Within HiGHS's tolerance and still too much: ask for less than this choice costs.
        costs = [constraint.cost(items) for constraint in constraints]
        limits = [
            limit - 2 * (cost - constraint.limit) - _spread(constraint) * 1e-6 / _RANGE if exceeded else limit
            for limit, cost, constraint, exceeded in zip(limits, costs, constraints, over, strict=True)
        ]
    raise CheckError("HiGHS finds no choice of widths within the budget to its tolerance. Use solver=dynamic.")


def _solved(values: Sequence[Floats], constraints: Sequence[Constraint], time_limit: float, gap: float) -> Ints:
    sizes = np.array([value.size for value in values])
    starts = np.cumsum(sizes) - sizes
    pairs = [pair for constraint in constraints for pair in constraint.pairs]
    unique = list(dict.fromkeys((pair.first, pair.second) for pair in pairs))
    products = np.array([sizes[first] * sizes[second] for first, second in unique], dtype=np.int64)
    binaries, extra = int(sizes.sum()), int(products.sum())
    objective = np.concatenate([-np.concatenate(list(values)), np.zeros(extra)])
    scale = float(np.abs(objective).max()) or 1.0
    rows = [LinearConstraint(hstack([_one_each(sizes), csr_array((sizes.size, extra))]), 1, 1)]
    if unique:
        rows.append(LinearConstraint(_marginals(unique, sizes, starts, binaries), 0, 0))
    rows += [_row(constraint, unique, products) for constraint in constraints]
    result: OptimizeResult = milp(
        objective / scale,
        integrality=np.concatenate([np.ones(binaries), np.zeros(extra)]),
        bounds=Bounds(0, 1),
        constraints=rows,
        options={"time_limit": time_limit, "mip_rel_gap": gap},
    )
    if result.status == _INFEASIBLE:
        raise _out_of_reach(constraints)
    if result.status != 0 or result.x is None:
        raise CheckError(
            f"HiGHS ended without a proven optimum ({result.message}) Use solver=dynamic, a larger round_to, or pairwise=no."
        )
    ends = starts + sizes
    return np.array([int(np.argmax(result.x[start:end])) for start, end in zip(starts, ends, strict=True)], dtype=np.int64)


def _one_each(sizes: Ints) -> csr_array:
    """Adds the variables of each group."""
    groups = np.repeat(np.arange(sizes.size), sizes)
    return csr_array(coo_array((np.ones(groups.size), (groups, np.arange(groups.size))), shape=(sizes.size, groups.size)))


def _marginals(unique: Sequence[tuple[int, int]], sizes: Ints, starts: Ints, binaries: int) -> csr_array:
    """``sum_q z[p, q] - x[p] = 0`` and ``sum_p z[p, q] - y[q] = 0`` for each pair of groups."""
    left, right = [], []
    for first, second in unique:
        one, other = identity(sizes[first]), identity(sizes[second])
        right.append(vstack([kron(one, np.ones((1, sizes[second]))), kron(np.ones((1, sizes[first])), other)]))
        left += [_selection(starts[group], sizes[group], binaries) for group in (first, second)]
    return csr_array(hstack([-vstack(left), block_diag(right)]))


def _selection(start: int, count: int, columns: int) -> csr_array:
    return csr_array(coo_array((np.ones(count), (np.arange(count), start + np.arange(count))), shape=(count, columns)))


def _row(constraint: Constraint, unique: Sequence[tuple[int, int]], products: Ints) -> LinearConstraint:
    """The constraint above each group's least cost, scaled so that HiGHS's absolute tolerance is small beside it."""
    least = [float(cost.min()) for cost in constraint.costs]
    grids = {key: np.zeros(int(count)) for key, count in zip(unique, products, strict=True)}
    for pair in constraint.pairs:
        grids[pair.first, pair.second] += pair.costs.ravel()
    row = np.concatenate([*(cost - low for cost, low in zip(constraint.costs, least, strict=True)), *grids.values()])
    scale = _RANGE / (_spread(constraint) or 1.0)
    return LinearConstraint(csr_array((row * scale)[None]), -np.inf, (constraint.limit - sum(least)) * scale)


def _spread(constraint: Constraint) -> float:
    """How far the costs of choices lie apart at most, or the limit from the least of them."""
    parts = list(_parts(constraint))
    least = float(sum(part.min() for part in parts))
    return max(float(sum(part.max() for part in parts)) - least, abs(constraint.limit - least))


def _parts(constraint: Constraint) -> Iterator[Floats]:
    yield from constraint.costs
    yield from (pair.costs for pair in constraint.pairs)


def _out_of_reach(constraints: Sequence[Constraint]) -> TargetError:
    """What to say: which constraint no choice can meet by itself, as far as the separate costs tell."""
    for constraint in constraints:
        least = float(sum(part.min() for part in _parts(constraint)))
        if least > constraint.limit:
            return no_choice(constraint.limit, least)
    return TargetError("No choice of widths meets all budgets together. Loosen one of them.")
