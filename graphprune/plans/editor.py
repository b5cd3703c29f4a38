"""Changing a plan by hand: what is asked of one layer is closed over all that it is coupled with, or refused with the reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from graphprune.channels.groups import Bools, Groups, Ints, Kept
from graphprune.errors import PlanError, UsageError
from graphprune.plans.plan import Plan, kept_indices, kept_units

_AXIS: Final = re.compile(r"(.*)\[(\d+)\]")


class PlanEditor:
    """Edits a plan, which itself never changes; :attr:`plan` is the new one.

    A place is a layer (``layer3.0.conv1``: the channels that it makes, axis 0 of its weight), a tensor (its axis 0), or one axis
    of a tensor (``layer3.0.conv2.weight[1]``). Indices are those of the original.

    >>> import torch, graphprune
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> result = graphprune.prune(model, torch.zeros(1, 8), target="channels=50%")
    >>> editor = result.edit()
    >>> editor["0"] = [0, 1, 3]
    >>> editor.plan.kept["2.weight"]
    {1: [0, 1, 3]}
    >>> graphprune.apply_plan(model, torch.zeros(1, 8), editor.plan).model.get_submodule("0").out_features
    3
    """

    def __init__(self, plan: Plan, groups: Groups) -> None:
        """Raises PlanError where the plan does not fit the groups."""
        self._original = plan
        self._groups = groups
        self._stays = kept_units(plan, groups).units.copy()

    def __getitem__(self, place: str) -> list[int]:
        """The indices that stay, ascending. Raises UsageError where there is no such place."""
        return np.flatnonzero(self._stays[self._units(place)]).tolist()

    def __setitem__(self, place: str, indices: Iterable[int]) -> None:
        """Keep exactly these indices, and what is coupled with them.

        Raises PlanError, and changes nothing, where that cuts through a unit or a frozen group, or leaves nothing.
        """
        units = self._units(place)
        mask = self._mask(place, list(indices), units.size)
        if not mask.any():
            raise PlanError(f"Nothing would be left of {place}. Keep at least one index.")
        self._check_whole(place, units, mask)
        stays = self._stays.copy()
        stays[units] = mask
        self._check_frozen(place, stays)
        self._check_nonempty(place, stays)
        self._stays = stays

    def drop(self, place: str, indices: Iterable[int]) -> None:
        """Take these indices out as well. Raises as setting does."""
        gone = set(indices)
        self._mask(place, sorted(gone), self._units(place).size)
        self[place] = [index for index in self[place] if index not in gone]

    def restore(self, place: str) -> None:
        """Keep all of a place again."""
        self._stays[self._units(place)] = True

    @property
    def plan(self) -> Plan:
        """The plan as edited, for :func:`graphprune.apply_plan`. It has no record of a pipeline or target: it met none."""
        kept = Kept(self._groups, self._stays.copy())
        record: dict[str, Any] = {"pipeline": "", "scores": {}, "target": {}, "keep": {}, "achieved": {}, "errors": {}}
        return self._original.model_copy(update={"kept": kept_indices(self._groups, kept), **record})

    def _units(self, place: str) -> Ints:
        """The unit of each index along a place."""
        part = _AXIS.fullmatch(place)
        name, axis = (part[1], int(part[2])) if part else (place, 0)
        trace = self._groups.trace
        candidates = (name, f"{name}.weight")
        tensor = next((one for one in candidates if one in trace.parameters or one in trace.aliases), None)
        if tensor is None:
            raise UsageError(f"The plan's model has no layer with a weight, and no tensor, named {name!r}. {self._hint(name)}")
        value = trace.parameters[trace.aliases.get(tensor, tensor)]
        for field in value.fields:
            along, units = self._groups.units_along(field)
            if along == axis:
                return units
        raise UsageError(f"Axis {axis} of {tensor}, of shape {list(value.shape)}, has no channels to choose from.")

    def _hint(self, name: str) -> str:
        inside = [one for one in self._groups.trace.parameters if one.startswith(f"{name}.")]
        return f"In it are {', '.join(inside[:3])}." if inside else "Names are those of model.named_parameters()."

    @staticmethod
    def _mask(place: str, indices: Sequence[int], size: int) -> Bools:
        wrong = next((index for index in indices if not 0 <= index < size), None)
        if wrong is not None:
            raise PlanError(f"{place} has no index {wrong}: it has {size}. Indices are those of the original.")
        mask = np.zeros(size, dtype=bool)
        mask[list(indices)] = True
        return mask

    def _check_whole(self, place: str, units: Ints, mask: Bools) -> None:
        """A unit that has several indices here goes or stays with all of them."""
        split = np.intersect1d(units[mask], units[~mask])
        if split.size:
            together = np.flatnonzero(units == split[0]).tolist()
            shown = f"{together[:4]}{' and more' if len(together) > 4 else ''}"
            raise PlanError(f"Indices {shown} of {place} are one unit, and go or stay together. Name all of them or none.")

    def _check_frozen(self, place: str, stays: Bools) -> None:
        frozen = next((group for group in self._groups.frozen if not stays[group.units].all()), None)
        if frozen is not None:
            raise PlanError(f"{place} cannot be cut: {frozen.name} must stay, because {frozen.reason}.")

    def _check_nonempty(self, place: str, stays: Bools) -> None:
        kept = Kept(self._groups, stays)
        for name, axis, vector in self._groups.axes:
            if not kept.lengths[vector]:
                raise PlanError(f"Cutting {place} so would leave nothing of axis {axis} of {name}. Keep one more index.")
