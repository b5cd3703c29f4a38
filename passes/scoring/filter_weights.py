"""The weights of filters as matrices with a row for each unit, shared by the criteria of weights that compare filters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx

from graphprune.arithmetic import real_parts
from graphprune.channels.filters import Filter
from graphprune.channels.groups import FROZEN, Ints
from graphprune.criteria import Floats, ScoringContext
from graphprune.ir.twins import twin
from graphprune.passes.calibration.loading import loaded
from graphprune.passes.scoring.norms import batch_norm_factors

Scope: TypeAlias = Literal["layer", "group"]


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
        """The weight itself, in its own dtype: a parameter, or what the graph computes from parameters.

        Real and imaginary parts of a complex one are on an axis at the end.
        """
        with torch.no_grad():
            value: Tensor = self._compute(found.weight) if found.weight else self.context.program.values[found.tensor].detach()
        return real_parts(value)

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
        """Rows of the producing filters: of every layer, or those of all layers of a group side by side, in float64.

        A group is done once its last layer was read. Where weights are loaded on demand, rows are no longer than there are units
        (:func:`shortened`), so that what is kept of the layers that were read is little.
        """
        filters = self.filters(makes=True)
        if scope == "layer":
            yield from (found for f in filters for found in self.rows(f))
            return
        groups = self.context.groups.group_of
        last = {group: f for f in filters for group in np.unique(groups[f.units]).tolist()}
        together: dict[int, list[Tensor]] = defaultdict(list)
        for f in filters:
            for units, rows in self.rows(f):
                group = int(groups[units[0]])
                together[group].append(rows)
                if self.context.program.weights is not None:
                    together[group] = [shortened(together[group])]
                if last[group] is f:
                    yield units, torch.cat([part.double() for part in together.pop(group)], 1)


def shortened(parts: Sequence[Tensor]) -> Tensor:
    """Rows (units, elements) side by side, in float64: in another orthonormal basis once they are longer than there are units.

    Lengths, angles and distances stay. The rows are then the triangle of a QR decomposition, which takes in block after block
    (sequential TSQR: Demmel et al., SIAM J. Sci. Comput. 2012).
    """
    units = len(parts[0])
    result = parts[0].new_zeros(units, 0, dtype=torch.float64)
    for block in (block for part in parts for block in part.split(units, 1)):
        result = torch.cat([result, block.double()], 1)
        if result.shape[1] > units:
            result = torch.linalg.qr(result.mT, mode="r").R.mT
    return result
