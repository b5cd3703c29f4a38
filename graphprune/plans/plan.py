"""The plan: which slices of which tensors stay. Plain data, readable as JSON, checked against the model it is for."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from graphprune.channels.groups import Bools, Groups, Ints, Kept
from graphprune.errors import PlanError
from graphprune.files import Saved
from graphprune.ir.twins import named_tensors

if TYPE_CHECKING:
    from graphprune.plans.editor import PlanEditor

Index = Annotated[int, Field(ge=0)]


class Plan(Saved, BaseModel, what="plan", remedy="Write plans with plan.save().", raises=PlanError):
    """A pruning decision.

    kept: for every parameter and buffer (by its name in the original ``state_dict``) that loses anything, the kept
        indices of each axis that does, ascending. model: fingerprint of the original: dtype and shape of each tensor.
    policy: choices at ambiguous sites that the units were formed with (:class:`graphprune.pipeline.policy.Policy`).
    scopes: the submodules that were pruned, where the model was not captured as a whole.
    pipeline, scores, target, keep, achieved, errors: how the decision was made, for the record.

    >>> plan = Plan(kept={"0.weight": {0: [0, 2]}}, model={"0.weight": "float32[3, 4]"})
    >>> Plan.model_validate_json(plan.model_dump_json()) == plan
    True
    """

    schema_version: Literal[1] = 1
    kept: dict[str, dict[Index, list[Index]]] = Field(repr=False)
    model: dict[str, str] = Field(repr=False)
    policy: dict[str, str] = {}
    scopes: list[str] = []
    pipeline: str = ""
    scores: dict[str, dict[str, str]] = {}
    target: dict[str, str] = {}
    keep: dict[str, str] = {}
    achieved: dict[str, float] = {}
    errors: dict[str, float] = {}

    def then(self, later: Plan) -> Plan:
        """This plan followed by one for the model that it leaves, as one plan for the original.

        Raises PlanError where the later one keeps what this one does not leave.
        """
        kept = composed(self.kept, later.kept)
        return later.model_copy(update={"kept": dict(sorted(kept.items())), "model": self.model})

    def edit(self, groups: Groups) -> PlanEditor:
        """An editor of this plan; see :class:`graphprune.plans.editor.PlanEditor`. groups: of the model that the plan is for.

        Raises PlanError where the plan does not fit the groups.
        """
        from graphprune.plans.editor import PlanEditor

        return PlanEditor(self, groups)

    def _repr_html_(self) -> str:
        from graphprune.html import of_plan

        return of_plan(self)

    def slice(self, name: str, tensor: Tensor) -> Tensor:
        """What the plan leaves of the tensor of this name, or of one of the same shape: its gradient, its momentum."""
        for axis, indices in self.kept.get(name, {}).items():
            tensor = tensor.index_select(axis, torch.tensor(indices, device=tensor.device))
        return tensor

    def unslice(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """The way back from :meth:`slice`: at the original's shape, zero where the plan removes.

        >>> import torch
        >>> plan = Plan(kept={"w": {0: [0, 2]}}, model={})
        >>> plan.unslice("w", plan.slice("w", torch.tensor([1.0, 2.0, 3.0])), (3,))
        tensor([1., 0., 3.])
        """
        for axis, indices in self.kept.get(name, {}).items():
            wide = list(tensor.shape)
            wide[axis] = shape[axis]
            tensor = tensor.new_zeros(wide).index_copy(axis, torch.tensor(indices, device=tensor.device), tensor)
        return tensor

    def check_fits(self, module: nn.Module) -> None:
        """Raise PlanError naming the first difference between the model and the one that the plan was made for."""
        mine = fingerprint(module)
        for name, wanted in self.model.items():
            found = mine.get(name)
            if found != wanted:
                what = "is missing" if found is None else f"is {found}"
                raise PlanError(f"The plan does not fit this model: {name} {what} here and {wanted} in the plan's model.")
        extra = next((name for name in mine if name not in self.model), None)
        if extra is not None:
            raise PlanError(f"The plan does not fit this model: {extra} exists here and not in the plan's model.")


def fingerprint(module: nn.Module) -> dict[str, str]:
    """dtype and shape of every parameter and buffer, by name (tied tensors under each name)."""
    return {name: _kind(tensor.dtype, tensor.shape) for name, tensor in sorted(named_tensors(module).items())}


@lru_cache
def _kind(dtype: torch.dtype, shape: torch.Size) -> str:
    return f"{str(dtype)[6:]}{list(shape)}"


def make_plan(module: nn.Module, groups: Groups, kept: Kept, **provenance: Any) -> Plan:
    """The plan that keeps exactly these units."""
    # Valid by construction: checking every index again would take longer than finding them.
    plan = Plan.model_construct(kept=kept_indices(groups, kept), model=fingerprint(module), **provenance)
    groups.remember(plan, kept)
    return plan


def kept_indices(groups: Groups, kept: Kept) -> dict[str, dict[int, list[int]]]:
    """The ``kept`` of a plan that keeps exactly these units."""
    vectors = {vector for axes in kept.cuts.values() for _, vector in axes}
    lists = {vector: np.flatnonzero(kept.vector(vector)).tolist() for vector in vectors}
    indices = {name: {axis: lists[vector] for axis, vector in axes} for name, axes in kept.cuts.items()}
    for alias, name in groups.trace.aliases.items():
        if name in indices:
            indices[alias] = indices[name]
    return dict(sorted(indices.items()))


def kept_units(plan: Plan, groups: Groups, following: Container[str] = ()) -> Kept:
    """The units that a plan keeps. Raises PlanError where it cuts through one, cuts a frozen one, or leaves an axis empty.

    following: tensors that the plan need not name: they lose what their units lose.
    """
    known = groups.remembered(plan)
    if known is not None:
        return known
    removed = np.zeros(groups.unit_count, dtype=bool)
    cuts: list[tuple[str, int, Ints, Bools | None]] = []
    for name, value in groups.trace.parameters.items():
        axes = dict(plan.kept.get(name, {}))
        for field in value.fields:
            axis, units = groups.units_along(field)
            mask = _mask(name, axis, axes.pop(axis), value.shape) if axis in axes else None
            if mask is not None:
                removed[units[~mask]] = True
            cuts.append((name, axis, units, mask))
        if axes:
            raise PlanError(f"The plan cuts axis {min(axes)} of {name}, of shape {list(value.shape)}, which cannot shrink.")
    _check_names(plan, groups)
    for name, axis, units, mask in cuts:
        if mask is None and name in following:
            continue
        wrong = removed[units] if mask is None else removed[units] == mask
        if wrong.any():
            raise PlanError(
                f"The plan contradicts itself: index {int(np.flatnonzero(wrong)[0])} of axis {axis} of {name} is kept, "
                "but belongs to a unit that loses another slice."
            )
    frozen = next((g for g in groups.frozen if removed[g.units].any()), None)
    if frozen is not None:
        raise PlanError(f"The plan cuts {frozen.name}, which must stay: {frozen.reason}.")
    return Kept(groups, ~removed)


def composed(
    first: Mapping[str, Mapping[int, list[int]]], then: Mapping[str, Mapping[int, list[int]]]
) -> dict[str, dict[int, list[int]]]:
    """Kept indices of a plan (``plan.kept``), and those of another one for the model that it leaves, as one for the original.

    >>> composed({"w": {0: [0, 2, 5]}}, {"w": {0: [1, 2], 1: [0]}})
    {'w': {0: [2, 5], 1: [0]}}

    Raises PlanError where the second keeps what the first does not leave.
    """
    result = {name: {axis: list(indices) for axis, indices in axes.items()} for name, axes in first.items()}
    for name, axes in then.items():
        known = result.setdefault(name, {})
        for axis, indices in axes.items():
            last = max(indices, default=0)
            left = known.get(axis, range(last + 1))
            if last >= len(left):
                raise PlanError(
                    f"The later plan keeps index {last} of axis {axis} of {name}, of which the earlier one leaves {len(left)}. "
                    "Put plans together in the order in which they were made."
                )
            known[axis] = [left[index] for index in indices]
    return result


def _mask(name: str, axis: int, indices: list[int], shape: tuple[int, ...]) -> Bools:
    size = shape[axis]
    mask = np.zeros(size, dtype=bool)
    if not indices or indices != sorted(set(indices)) or indices[-1] >= size:
        raise PlanError(f"The plan's indices for axis {axis} of {name} are not ascending indices below {size}, at least one.")
    mask[indices] = True
    return mask


def _check_names(plan: Plan, groups: Groups) -> None:
    known = groups.trace.parameters.keys() | groups.trace.aliases.keys()
    unknown = next((name for name in plan.kept if name not in known), None)
    if unknown is not None:
        raise PlanError(f"The plan cuts {unknown}, which the model's forward does not use.")
    for alias, name in groups.trace.aliases.items():
        if plan.kept.get(alias) != plan.kept.get(name):
            raise PlanError(f"The plan cuts {name} and {alias} differently, but they are one tensor.")
