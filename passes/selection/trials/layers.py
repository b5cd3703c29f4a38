"""Where units can be cut: layers that make channels, or groups; how many at once, and how few must stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import floor

import numpy as np

from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Floats, Groups
from graphprune.costs.cost import CostModel
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.pipeline.analysis_manager import AnalysisManager

SCOPES = ("layer", "group")


@dataclass(frozen=True, eq=False)
class Layer:
    """A place where units are ranked. group: by its index. maker: the one layer whose weights rank them; None for all of the
    group."""

    name: str
    group: int
    maker: Filter | None = None


def find_layers(groups: Groups, filters: Sequence[Filter], scope: str) -> tuple[Layer, ...]:
    """All places, in the order of the graph: every layer that makes channels (scope ``layer``), or every group (``group``).

    A layer is called by its module, numbered where that makes channels of several groups, or several times.
    """
    if scope == "group":
        return tuple(Layer(group.name, group.index) for group in groups.prunable)
    seen = Counter[str]()
    found = []
    for maker, group in _makers(groups, filters):
        name = maker.tensor.removesuffix(".weight")
        seen[name] += 1
        found.append(Layer(name if seen[name] == 1 else f"{name}#{seen[name]}", group, maker))
    return tuple(found)


def _makers(groups: Groups, filters: Sequence[Filter]) -> Iterator[tuple[Filter, int]]:
    """Filters that make channels, with each group of these; a weight that is used several times counts once."""
    seen: set[tuple[str, int]] = set()
    for f in filters:
        key = (f.weight or f.tensor, f.axis)
        if f.makes and key not in seen:
            seen.add(key)
            owners = groups.group_of[f.units]
            for group in np.unique(owners[owners != FROZEN]).tolist():
                yield f, group


def unit_shares(cost: CostModel) -> Floats:
    """For each group, the share of all multiply-accumulates that go with one of its units."""
    widths = cost.groups.widths
    narrower = widths - np.eye(widths.size, dtype=np.int64)
    whole = float(cost.macs(widths))
    shares: Floats = (whole - np.asarray(cost.macs(narrower), dtype=np.float64)) / (whole or 1.0)
    return shares


def step_sizes(program: Program, step: float = 1.0, scope: str = "layer") -> dict[str, int]:
    """How many units one cut takes in each layer (or group), by its name: those of about ``step`` percent of the program's
    multiply-accumulates, ``max(1, floor(step / d + 1/2))`` with d the percent that go with one unit.

    Compute them once, on the program before anything is cut (Ghimire et al., 2023: they stay as they are for the whole run).
    Layers whose units take no multiply-accumulates have none.
    """
    manager = AnalysisManager()
    shares = unit_shares(manager.get(program, ModelCost)).tolist()
    layers = find_layers(manager.get(program, ChannelGroups), manager.get(program, Filters), scope)
    return {layer.name: max(1, floor(step / (100 * shares[layer.group]) + 0.5)) for layer in layers if shares[layer.group] > 0}


def least_widths(program: Program, max_ratio: float = 0.75, scope: str = "layer") -> dict[str, int]:
    """How many units must stay in each layer (or group), by its name: all but ``max_ratio`` of the program's, at least 1."""
    manager = AnalysisManager()
    groups = manager.get(program, ChannelGroups)
    sizes = {layer.name: groups.prunable[layer.group].size for layer in find_layers(groups, manager.get(program, Filters), scope)}
    return {name: max(1, size - floor(max_ratio * size + 1e-9)) for name, size in sizes.items()}


def highest(numbers: Mapping[str, int], layers: Sequence[Layer]) -> dict[int, int]:
    """For each group with a layer, the highest number of its layers."""
    found: dict[int, int] = {}
    for layer in layers:
        found[layer.group] = max(found.get(layer.group, 0), numbers[layer.name])
    return found
