"""The knapsack where costs depend on a group and the one before it, by dynamic programming over (candidate, budget)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import networkx as nx
import numpy as np

from graphprune.errors import UsageError
from graphprune.passes.selection.solvers.integers import to_integers
from graphprune.passes.selection.solvers.problem import Constraint, Floats, Ints, Pair, check_shapes, no_choice


def is_chain(pairs: Sequence[Pair]) -> bool:
    """Whether the pairs link the groups to one or more chains: no group is in three pairs, and none is linked in a ring."""
    graph = nx.Graph((pair.first, pair.second) for pair in pairs)
    return all(degree <= 2 for _, degree in graph.degree) and (not graph or nx.is_forest(graph))


def solve(values: Sequence[Floats], constraint: Constraint, buckets: int = 10_000) -> Ints:
    """One candidate of each group, for the most value at a total cost of at most the limit; exact as
    :func:`~graphprune.passes.selection.solvers.dynamic.solve` is.

    Time is O(candidates of a group x candidates of the next x buckets) for each link, memory 8 bytes for each candidate and
    bucket. Raises UsageError where pairs do not form chains, and TargetError if no choice fits.
    """
    check_shapes(values, constraint.costs)
    if not is_chain(constraint.pairs):
        raise UsageError("Costs of pairs that do not form a chain have no chain to go along. Use solver=milp.")
    order = _order(constraint.pairs, len(values))
    linked = _links(order, constraint)
    whole, scale = to_integers(linked, constraint.limit, buckets)
    capacity = scale.buckets(constraint.limit)
    if capacity < 0:
        raise no_choice(constraint.limit, scale.base)
    table = np.zeros((1, capacity + 1))
    tables = [table]
    for group, costs in zip(order, whole, strict=True):
        table = _extended(table, costs, values[group])
        tables.append(table)
    if np.isneginf(table[:, capacity]).all():
        raise no_choice(constraint.limit, scale.base)
    return _choice(order, whole, tables, capacity)


def _order(pairs: Sequence[Pair], count: int) -> list[int]:
    """The groups along their chains, one chain after the other."""
    graph = nx.Graph((pair.first, pair.second) for pair in pairs)
    graph.add_nodes_from(range(count))
    order: list[int] = []
    for part in sorted(nx.connected_components(graph), key=min):
        end = min(group for group in part if graph.degree[group] < 2)
        order += nx.dfs_preorder_nodes(graph, end)
    return order


def _links(order: Sequence[int], constraint: Constraint) -> list[Floats]:
    """For each group in order its costs by (candidate of the group before, own candidate); the first has one row."""
    grids: dict[tuple[int, int], Floats] = {}
    for pair in constraint.pairs:
        _add(grids, (pair.first, pair.second), pair.costs)
        _add(grids, (pair.second, pair.first), pair.costs.T)
    found = [constraint.costs[order[0]][None]]
    for before, group in pairwise(order):
        own = constraint.costs[group][None]
        zero = np.zeros((constraint.costs[before].size, 1))
        found.append(grids.get((before, group), zero) + own)
    return found


def _add(grids: dict[tuple[int, int], Floats], key: tuple[int, int], costs: Floats) -> None:
    grids[key] = grids[key] + costs if key in grids else costs


def _extended(before: Floats, costs: Ints, values: Floats) -> Floats:
    """``after[q, c] = values[q] + max_p before[p, c - costs[p, q]]``; -inf where nothing fits."""
    size = before.shape[1]
    after = np.full((values.size, size), -np.inf)
    for p, row in enumerate(costs.tolist()):
        for q, cost in enumerate(row):
            if cost < size:
                np.maximum(after[q, cost:], before[p, : size - cost], out=after[q, cost:])
    return after + values[:, None]


def _choice(order: Sequence[int], whole: Sequence[Ints], tables: Sequence[Floats], bucket: int) -> Ints:
    """Walk back from the best last candidate; of equal ones the narrowest."""
    own = int(np.argmax(tables[-1][:, bucket]))
    found: dict[int, int] = {}
    for place in range(len(order) - 1, -1, -1):
        found[order[place]] = own
        left = bucket - whole[place][:, own]
        before = tables[place][np.arange(left.size), np.maximum(left, 0)]
        previous = int(np.argmax(np.where(left >= 0, before, -np.inf)))
        bucket, own = int(left[previous]), previous
    return np.array([found[group] for group in range(len(order))], dtype=np.int64)
