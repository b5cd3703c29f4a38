"""A plan for a whole model, carried out on a graph that holds a part of it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import nn

from graphprune.channels.groups import FROZEN, Groups, Kept
from graphprune.errors import PlanError
from graphprune.ir.twins import named_tensors
from graphprune.plans.plan import Plan, fingerprint, make_plan


def names_in_plan(plan: Plan, part: nn.Module, model: nn.Module | None = None) -> dict[str, str]:
    """For each tensor of a part of the plan's model, by its name in the part, its name in the model.

    model: the model itself, if it is at hand: tensors are then found by identity. Otherwise the part is looked for by names, dtypes
    and shapes. Tensors that the plan does not know are left out: nobody can have decided about them. Raises PlanError where the
    part can be in no place of the model, or in several.
    """
    if model is not None:
        plan.check_fits(model)
        known = {id(tensor): name for name, tensor in named_tensors(model).items()}
        return {name: known[id(tensor)] for name, tensor in named_tensors(part).items() if id(tensor) in known}
    mine = {name: kind for name, kind in fingerprint(part).items() if _ends(plan, name)}
    if not mine:
        return {}
    first = min(mine)
    prefixes = [name.removesuffix(first) for name in _ends(plan, first)]
    fitting = [prefix for prefix in prefixes if all(plan.model.get(prefix + name) == kind for name, kind in mine.items())]
    if len(fitting) != 1:
        where = "fits no part" if not fitting else f"fits {len(fitting)} parts"
        raise PlanError(
            f"What Dynamo compiled, with {first} of {mine[first]}, {where} of the plan's model. "
            "Give the model that the plan is for, options={'model': model, ...}."
        )
    return {name: fitting[0] + name for name in mine}


def _ends(plan: Plan, name: str) -> list[str]:
    return [known for known in plan.model if known == name or known.endswith(f".{name}")]


def part_of_plan(plan: Plan, part: nn.Module, groups: Groups, names: Mapping[str, str]) -> tuple[Plan, dict[str, str]]:
    """What of a plan can be carried out on a part of its model, as a plan for the part, and what cannot.

    groups: of the part. names: those of its tensors in the plan, see :func:`names_in_plan`. A unit goes if the plan removes all of
    its slices and nothing freezes it here. Returns the reason for each tensor (by its name in the plan) that stays wider.
    """
    removed = np.zeros(groups.unit_count, dtype=bool)
    stays = groups.group_of == FROZEN
    for local, value in groups.trace.parameters.items():
        if local not in names:
            continue
        cuts = plan.kept.get(names[local], {})
        for field in value.fields:
            axis, units = groups.units_along(field)
            gone = np.zeros(units.size, dtype=bool)
            if axis in cuts:
                gone[:] = True
                gone[cuts[axis]] = False
            removed[units[gone]] = True
            stays[units[~gone]] = True
    why = {unit: str(group.reason) for group in groups.frozen for unit in group.units.tolist()}
    refused: dict[str, str] = {}
    for local, value in groups.trace.parameters.items():
        for field in value.fields:
            _, units = groups.units_along(field)
            blocked = units[removed[units] & stays[units]]
            if local in names and blocked.size:
                refused[names[local]] = why.get(int(blocked[0]), "a tensor that it is coupled with keeps these channels")
    return make_plan(part, groups, Kept(groups, ~removed | stays), policy=plan.policy, pipeline=plan.pipeline), refused
