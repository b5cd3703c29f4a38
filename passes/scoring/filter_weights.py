"""The weights of filters as matrices with a row for each unit, shared by the criteria of weights that compare filters."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Ints
from graphprune.criteria import Floats, ScoringContext
from graphprune.ir.twins import twin
from graphprune.passes.calibration.loading import loaded
from graphprune.passes.scoring.norms import batch_norm_factors

Scope: TypeAlias = Literal["layer", "group"]


def by_layer(scope: Scope, **options: object) -> bool:
    """Whether a criterion with these options looks at one layer after another, and never at several."""
    return scope == "layer"


class FilterWeights:
    """The weights that the filters of a context stand for. bn_fold: as they are once batch norms that follow are folded in."""

    def __init__(self, context: ScoringContext, *, bn_fold: bool = False) -> None:
        self.context = context
        self._factors = batch_norm_factors(context.program) if bn_fold else {}

    def filters(self, *, makes: bool) -> list[Filter]:
        """The filters in one role; a weight that the graph uses several times counts once."""
        found: dict[tuple[str, int], Filter] = {}
        for f in self.context.filters:
            if f.makes == makes:
                found.setdefault((f.weight or f.tensor, f.axis), f)
        return list(found.values())

    def weight(self, found: Filter) -> Tensor:
        """The weight itself, in its own dtype: a parameter, or what the graph computes from parameters."""
        if not found.weight:
            return self.context.program.values[found.tensor].detach()
        with torch.no_grad():
            value: Tensor = self._compute(found.weight)
        return value

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where nodes are in the graph, by name."""
        return {node.name: place for place, node in enumerate(self.context.program.module.graph.nodes)}

    @cached_property
    def _interpreter(self) -> fx.Interpreter:
        # A copy in eval mode, so that a parametrisation which keeps state (spectral normalisation) changes none.
        module = twin(self.context.program.module, lambda tensor: tensor.detach())
        for part in module.modules():
            part.training = False
        return fx.Interpreter(module, garbage_collect_values=False)

    def _compute(self, name: str) -> Any:
        """What a node makes of parameters alone."""
        interpreter, nodes = self._interpreter, list(self.context.program.module.graph.nodes)
        needed = [nodes[self._places[name]]]
        for node in needed:  # it grows
            needed += [source for source in node.all_input_nodes if source not in needed]
        needed.sort(key=lambda node: self._places[node.name])
        interpreter.env = {}
        with loaded(self.context.program.weights, cast(fx.GraphModule, interpreter.module), needed):
            for node in needed:
                interpreter.env[node] = interpreter.run_node(node)
        return interpreter.env[needed[-1]]

    def rows(self, found: Filter) -> Iterator[tuple[Ints, Tensor]]:
        """For each group on a filter's axis: its units, and their slices as rows (units, elements), in the weight's dtype.

        A unit with several indices (a head, a channel of every convolution group) has them one after another in its row.
        """
        groups = self.context.groups
        weight = self.weight(found).movedim(found.axis, 0).flatten(1)
        factors = self._factors.get(found.node) if found.makes else None
        if factors is not None and len(factors) == len(weight):
            weight = weight * factors.to(weight.dtype)[:, None]
        order = np.argsort(found.units, kind="stable")
        owners = groups.group_of[found.units[order]]
        for group in np.unique(owners[owners != FROZEN]).tolist():
            index = order[owners == group]
            units = np.unique(found.units[index])
            yield units, weight[torch.from_numpy(index).to(weight.device)].reshape(units.size, -1)

    def squares(self, found: Filter) -> Iterator[tuple[Ints, Floats]]:
        """For each group on a filter's axis: its units, and the sum of squares of each one's slices, in float64."""
        for units, rows in self.rows(found):
            rows = rows if rows.dtype in (torch.float32, torch.float64) else rows.float()
            yield units, rows.square().sum(1).double().numpy(force=True)

    def producers(self, scope: Scope) -> Iterator[tuple[Ints, Tensor]]:
        """Rows of the producing filters: of every layer, or those of all layers of a group side by side."""
        layers = (found for f in self.filters(makes=True) for found in self.rows(f))
        if scope == "layer":
            yield from layers
            return
        together: dict[int, list[tuple[Ints, Tensor]]] = {}
        for units, rows in layers:
            together.setdefault(int(self.context.groups.group_of[units[0]]), []).append((units, rows))
        for members in together.values():
            yield members[0][0], torch.cat([rows.double() for _, rows in members], 1)
