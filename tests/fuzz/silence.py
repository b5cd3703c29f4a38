"""An oracle that shares nothing with graphprune's: weights under which the original's own Python must equal the slim model.

A removed channel leaves no trace in the original when what reads it has weights of zero there. Two ways to make the channel:

* *zero*: its own weights are zero too, so that products of activations (queries with keys) and sums have nothing of it;
* *twin*: its own weights are those of a channel that is kept. Means, variances and extrema over channels are then those over the
  kept ones, if of all channels that a statistic is taken over each has exactly one twin.

Where statistics are taken, half of the channels goes, and each is the twin of one that stays; elsewhere any part goes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphprune.channels.groups import FROZEN, Group, Groups, Kept
from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan
from tests.fuzz.block import Block

#: By layer and parameter, the axes that are summed over. All other axes make channels.
CONTRACTED: Mapping[type[nn.Module], dict[str, tuple[int, ...]]] = {
    nn.Linear: {"weight": (1,)},
    nn.Conv1d: {"weight": (1,)},
    nn.Conv2d: {"weight": (1,)},
    nn.Conv3d: {"weight": (1,)},
    nn.ConvTranspose2d: {"weight": (0,)},
    nn.MultiheadAttention: {"in_proj_weight": (1,)},
}


def contracted_axes(model: nn.Module, *, whole: bool) -> dict[str, tuple[int, ...]]:
    """For each tensor by its name, the axes that its layer sums over. whole: groups of convolutions go whole."""
    found: dict[str, tuple[int, ...]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}"
            if isinstance(module, nn.RNNBase):
                found[full] = (1,) if name.startswith("weight") else ()
            elif isinstance(module, Block):
                found[full] = module.contracts.get(name, ())
            else:
                kinds = [axes for kind, axes in CONTRACTED.items() if isinstance(module, kind)]
                found[full] = kinds[0].get(name, ()) if kinds else ()
            if isinstance(module, nn.ConvTranspose2d) and module.groups > 1 and (whole or module.in_channels == module.groups):
                found[full] = ()  # a group goes with what it makes, and nothing is summed over several
    return found


def halved(groups: Groups) -> set[int]:
    """Prunable groups with statistics of which half may go: all channels of each of their statistics are of such groups."""
    chosen = {g.index for g in groups.prunable if g.statistics is not None and g.size % 2 == 0 and g.size >= 4}
    populations = [{int(index) for index in groups.group_of[groups.unit_of[atoms]]} for atoms, _ in groups.trace.space.statistics]
    while True:
        spoilt = {index for population in populations if not population <= chosen for index in population & chosen}
        if not spoilt:
            return chosen
        chosen -= spoilt


def choose(groups: Groups, seed: int) -> tuple[Kept, dict[int, int]]:
    """Units to keep, at least two of each group, and of each removed one that is a twin, whose."""
    random = np.random.default_rng(seed)
    kept = np.ones(groups.unit_count, dtype=bool)
    twins: dict[int, int] = {}
    half = halved(groups)
    for group in groups.prunable:
        gone = _gone(group, group.index in half, random)
        kept[gone] = False
        if group.index in half:
            stay = random.permutation([unit for unit in group.units if kept[unit]])
            twins |= {int(unit): int(other) for unit, other in zip(gone, stay, strict=True)}
    return Kept(groups, kept), twins


def _gone(group: Group, half: bool, random: np.random.Generator) -> Any:
    if half:
        return random.choice(group.units, group.size // 2, replace=False)
    if group.statistics is not None or group.size < 3:
        return group.units[:0]
    return random.choice(group.units, int(random.integers(1, group.size - 1)), replace=False)


def silenced(model: nn.Module, groups: Groups, plan: Plan, twins: Mapping[int, int]) -> nn.Module:
    """A copy of the original with such weights. plan: keeps what was chosen."""
    result = copy.deepcopy(model)
    tensors, sums = named_tensors(result), contracted_axes(model, whole=plan.policy.get("conv_groups") == "whole")
    with torch.no_grad():
        for name, value in groups.trace.parameters.items():
            along = dict(groups.units_along(field) for field in value.fields)
            reads = [axis for axis in along if axis in sums.get(name, ())]
            for axis in [*(set(along) - set(reads)), *reads]:
                stays = set(plan.kept.get(name, {}).get(axis, range(tensors[name].shape[axis])))
                gone = [index for index in range(tensors[name].shape[axis]) if index not in stays]
                _silence(tensors[name], axis, along[axis], gone, {} if axis in reads else twins)
    return result


def _silence(tensor: Tensor, axis: int, units: Any, gone: list[int], twins: Mapping[int, int]) -> None:
    places = {int(unit): np.flatnonzero(units == unit) for unit in set(units.tolist())}
    for index in gone:
        unit = int(units[index])
        assert unit != FROZEN
        into = tensor.select(axis, index)
        if unit in twins:
            order = int(np.flatnonzero(places[unit] == index)[0])
            into.copy_(tensor.select(axis, int(places[twins[unit]][order])).clone())
        else:
            into.zero_()
