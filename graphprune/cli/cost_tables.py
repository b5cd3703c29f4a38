"""What ``inspect --cost`` prints: the cost of a model as polynomials in its group widths, and what one channel costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import sympy
from rich.console import RenderableType
from rich.text import Text

from graphprune.channels.groups import Group
from graphprune.cli import tables
from graphprune.cli.survey import Survey
from graphprune.costs.cost import CostModel
from graphprune.costs.measures import Measure


@dataclass(frozen=True)
class GroupCost:
    """What a group costs. shares: of the whole that goes with all of its units; per_unit: what goes with one of them, at full
    width; both by kind."""

    shares: Mapping[str, float]
    per_unit: Mapping[str, float]


def _measures(cost: CostModel) -> dict[str, Measure]:
    return {
        "params": cost.parameters,
        "macs": cost.macs,
        "weight_bytes": cost.weight_bytes,
        "memory": cost.memory,
        "bytes_moved": cost.bytes_moved,
    }


def group_costs(cost: CostModel) -> list[GroupCost]:
    """Of every prunable group, by index."""
    full = cost.groups.widths
    one = np.eye(full.size, dtype=np.int64)
    found: dict[str, tuple[Any, Any]] = {}
    for kind, measure in _measures(cost).items():
        total = float(measure(full))
        gone = total - measure(full * (1 - one))
        found[kind] = (gone / total if total else gone), total - measure(full - one)
    return [
        GroupCost({k: float(v[0][g]) for k, v in found.items()}, {k: float(v[1][g]) for k, v in found.items()})
        for g in range(full.size)
    ]


_FORMULAS: Final[Mapping[str, Callable[[CostModel], sympy.Expr]]] = {
    "parameters": lambda cost: cost.parameters.formula,
    "MACs": lambda cost: cost.macs.formula,
    "weight bytes": lambda cost: cost.weight_bytes.formula,
    "bytes moved": lambda cost: cost.bytes_moved.formula,
}


def as_data(cost: CostModel, groups: Sequence[Group]) -> dict[str, Any]:
    """All of it as plain data; of these groups where they can be pruned."""
    costs = group_costs(cost)
    chosen = [group for group in groups if group.reason is None]
    return {
        "formulas": {name: str(formula(cost)) for name, formula in _FORMULAS.items()},
        "groups": {
            group.name: {
                "symbol": str(group.symbol),
                "shares": costs[group.index].shares,
                "per_unit": costs[group.index].per_unit,
            }
            for group in chosen
        },
    }


def cost_tables(survey: Survey, groups: Sequence[Group]) -> Iterator[RenderableType]:
    """The formulas, and a row for every group that can be pruned."""
    cost = survey.cost
    costs = group_costs(cost)
    headings = ("width", "group", "#units", "#parameters", "#MACs", "#parameters\nper unit", "#MACs\nper unit")
    table = tables.plain_table(*headings, title="Cost of every prunable group: of all its units, and of one")
    for group in (group for group in groups if group.reason is None):
        shares, one = costs[group.index].shares, costs[group.index].per_unit
        table.add_row(
            str(group.symbol),
            tables.folded(group.name),
            str(group.size),
            *(f"{shares[kind]:.1%}" for kind in ("params", "macs")),
            *(tables.count(one[kind]) for kind in ("params", "macs")),
        )
    yield table
    full, total = cost.groups.widths, cost.bytes_moved
    yield Text(f"Bytes that the operators move, run one by one: {tables.size(float(total(full)))}.")
    for name, formula in _FORMULAS.items():
        yield Text(f"\n{name}", style="bold")
        yield Text(str(formula(cost)).replace("**", "^").replace("*", " "))
