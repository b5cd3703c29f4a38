"""Masks while training: the model keeps its full weights, and each unit counts as much as its mask says, from 0 to 1.

The masks are one buffer. Changing it changes no shape and no code, so that ``torch.compile`` compiles once for a whole schedule. A
unit's mask multiplies the weights that read the unit: at 0 the unit is gone, whatever its activation is, and what makes it gets no
gradient; at 0.5 it counts half. (In recurrent layers, a mask between 0 and 1 weakens what makes the unit as well.)

Where something else than a weight combines units (a layer norm, a mean over channels), a zero is not the same as nothing, and the
units have no mask. (:mod:`graphprune.runs.masks` is another thing: it holds the weights themselves at zero, in training loops that
own the model.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graphprune.api import run_pipeline
from graphprune.channels.filters import Filter
from graphprune.channels.groups import Group, Groups, Kept
from graphprune.costs.cost import CostModel
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.ir.twins import named_tensors, set_mode
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.passes.analysis.filters import Filters
from graphprune.passes.selection.trials.silence import read_by_weights, reading_axes
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.pipeline.pass_base import Pass
from graphprune.pipeline.pass_manager import PassManager
from graphprune.pipeline.text import parse_pipeline
from graphprune.plans.plan import Plan, kept_units, make_plan
from graphprune.result import PruneResult
from graphprune.scores import Scores
from graphprune.tracing import capture


class Masked(nn.Module):
    """A model with a mask for every unit that can go; made by :func:`masked`.

    It is called, trained and compiled as the model. Its parameters are the model's own, so either one's can be given to an
    optimiser.

    module: the captured graph, on the model's tensors. mask: a buffer of shape (units,), all ones at first; what is not prunable
    stays at 1. cuts: how many of a schedule (:class:`graphprune.callbacks.GradualPruning`) were made, a buffer as well, since it
    belongs into checkpoints. groups: what the units are. stays: prunable groups that have no masks, with the reason.
    """

    def __new__(cls, program: Program) -> Masked:
        """An instance of a class of its own, whose forward has the model's signature: frameworks read it off the class."""

        def forward(self: Masked, *args: Any, **kwargs: Any) -> Any:
            return Masked.forward(self, *args, **kwargs)

        forward.__signature__ = signature(type(program.module).forward)  # type: ignore[attr-defined]
        return super().__new__(type(cls.__name__, (cls,), {"__module__": cls.__module__, "forward": forward}))

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._captured = program
        self._analyses = analyses = AnalysisManager()
        groups = analyses.get(program, ChannelGroups)
        silent = read_by_weights(groups, analyses.get(program, Filters))
        loud = [group for group in groups.prunable if not silent[group.units].all()]
        self._loud = {_axis(group, program): group for group in loud}
        self._program = program.with_(whole={f"{name}[{axis}]": _why(group) for (name, axis), group in self._loud.items()})
        self.stays = {group.name: _why(group) for group in loud}
        self.groups: Groups = analyses.get(self._program, ChannelGroups)
        self.module = program.module
        device = next((tensor.device for tensor in program.tensors.values()), torch.device("cpu"))
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(self.groups.unit_count, device=device))
        self.cuts: Tensor
        self.register_buffer("cuts", torch.zeros((), dtype=torch.int64, device=device))
        self._readers: dict[str, list[tuple[str, list[int]]]] = {}
        readers = reading_axes(self._program, self.groups, analyses.get(self._program, Filters))
        for number, (name, axis, units) in enumerate(readers):
            self.register_buffer(f"units{number}", torch.tensor(units, device=device), persistent=False)
            shape = [-1 if place == axis else 1 for place in range(program.tensors[name].dim())]
            self._readers.setdefault(name, []).append((f"units{number}", shape))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, each unit as much as its mask says."""
        weights = {name: self._weight(name) * self.mask_along(name) for name in self._readers}
        return functional_call(self.module, weights, args, kwargs)

    def __reduce__(self) -> Any:
        """Copied and pickled as the graph and its masks: what is known of a graph goes by its nodes, of which a copy has others."""
        return _again, (self._captured.with_(module=self.module), self.mask, self.cuts, self.training)

    def mask_along(self, name: str) -> Tensor:
        """What a weight is multiplied by: a tensor that broadcasts to its shape, of its dtype. Only weights that read have one."""
        factor = torch.ones((), device=self.mask.device)
        for index, shape in self._readers[name]:
            factor = factor * self.mask[self.get_buffer(index)].view(shape)
        return factor.to(self._weight(name).dtype)

    def of(self, group: str) -> Tensor:
        """The masks of a group's units, a copy of shape (size,). Raises UsageError for a group that has none."""
        return self.mask[self._units(self._group(group))]

    @property
    def filters(self) -> Sequence[Filter]:
        """What makes channels and what reads them."""
        return self._analyses.get(self._program, Filters)

    @property
    def costs(self) -> CostModel:
        """What the model costs as a function of the widths of its groups."""
        return self._analyses.get(self._program, ModelCost)

    def set(self, masks: Plan | Scores | Mapping[str, Sequence[float] | Tensor]) -> None:
        """Change the masks, in place.

        masks: a plan, for ones and zeros; scores between 0 and 1, as those of the passes that :meth:`run` runs; or values by group
        name, of shape (size,), where other groups stay as they are. Raises UsageError (PlanError, for a plan that contradicts
        itself) before anything is changed, where masks are not between 0 and 1, or a plan removes what has no mask.
        """
        new = self.mask.clone()
        if isinstance(masks, Plan):
            new = torch.from_numpy(self._kept(masks).units).to(new)
        elif isinstance(masks, Scores):
            for group in self.groups.prunable:
                new[self._units(group)] = torch.from_numpy(masks.values[group.units]).to(new)
        else:
            for name, values in masks.items():
                given, group = torch.as_tensor(values), self._group(name)
                if given.shape != (group.size,):
                    raise UsageError(
                        f"Masks of {name} have the shape {list(given.shape)}. Give one for each of its {group.size} units."
                    )
                new[self._units(group)] = given.to(new)
        if not bool(((new >= 0) & (new <= 1)).all()):
            raise UsageError("Masks must lie between 0 and 1. Normalise the scores (score{normalise=max}), or clamp the values.")
        with torch.no_grad():
            self.mask.copy_(new)

    def run(self, passes: str | Sequence[Pass]) -> Program:
        """Run passes on the model as its weights are now, such as ``"score{criterion=l1},select{macs=60%}"``; nothing changes.

        The ``plan`` of the program returned, or one of its ``scores``, can be given to :meth:`set`. Raises what the passes raise.
        """
        steps = parse_pipeline(passes) if isinstance(passes, str) else list(passes)
        return PassManager(steps).run(self._program, self._analyses)

    def plan(self, threshold: float = 0.5) -> Plan:
        """The plan that keeps units whose mask is at least the threshold. Raises UsageError where that leaves none of a group."""
        keep = (self.mask >= threshold).cpu().numpy()
        for group in self.groups.prunable:
            if not keep[group.units].any():
                raise UsageError(
                    f"All masks of {group.name} are below {threshold}, which leaves nothing of it. Lower the threshold."
                )
        return make_plan(self.module, self.groups, Kept(self.groups, keep), policy=dict(self._program.policy))

    def rewrite(self, threshold: float = 0.5, *, verify: bool = True) -> PruneResult:
        """The smaller model: it computes what this one does when masks below the threshold are 0.

        Masks of what stays become part of the weights, after the proof. Raises as :meth:`plan` and the rewriter do.
        """
        program = self._program.with_(plan=self.plan(threshold))
        result = run_pipeline(program, "rewrite,verify" if verify else "rewrite", analyses=self._analyses)
        slim = named_tensors(result.graph)
        with torch.no_grad():
            for name in self._readers:
                factor = self.mask_along(name).expand(self._weight(name).shape)
                slim[name].mul_(result.plan.slice(name, factor))
        return result

    def _group(self, name: str) -> Group:
        found = next((group for group in self.groups.prunable if group.name == name), None)
        if found is None:
            why = self.stays.get(name)
            known = ", ".join(group.name for group in self.groups.prunable[:5])
            raise UsageError(
                f"{name} has no masks: {why}. Rewrite without masks to prune it."
                if why
                else f"There is no group {name!r} to mask; there are {known}, ..."
            )
        return found

    def _weight(self, name: str) -> Tensor:
        path, _, leaf = name.rpartition(".")
        weight: Tensor = getattr(self.module.get_submodule(path), leaf)
        return weight

    def _units(self, group: Group) -> Tensor:
        return torch.from_numpy(group.units).to(self.mask.device)

    def _kept(self, plan: Plan) -> Kept:
        plan.check_fits(self.module)
        for (name, axis), group in self._loud.items():
            if axis in plan.kept.get(name, {}):
                raise UsageError(
                    f"The plan cuts {group.name}, which masks cannot silence: {self.stays[group.name]}. Apply it without."
                )
        return kept_units(plan, self.groups)


def masked(
    model: nn.Module,
    example_inputs: Any,
    plan: Plan | None = None,
    *,
    exclude: Sequence[str] = (),
    policy: Mapping[str, str] | None = None,
) -> Masked:
    """A model with masks, to prune it while it trains; one hard rewrite at the end.

    model, example_inputs, exclude, policy: as in :func:`graphprune.prune`. The masked model trains the model's own parameters; move
    the model to its device first. plan: sets the masks; its policy is the default.

    Raises CaptureError, UsageError for a model that traces in parts only, and PlanError for a plan that does not fit.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    >>> masks = masked(model, torch.zeros(1, 8))
    >>> masks.set(masks.run("score,select{channels=50%}").plan)
    >>> int(masks.of("0").sum())
    16
    >>> masks.rewrite().model.get_submodule("0").out_features
    16
    """
    chosen = policy if policy is not None or plan is None else plan.policy
    program = capture(model, example_inputs).under(exclude, chosen)
    if program.scopes:
        raise UsageError(
            f"{type(model).__name__} traces in parts only ({program.scopes[0].path}). "
            "Mask such a part: graphprune.masked(part, inputs)."
        )
    found = Masked(program)
    if plan is not None:
        found.set(plan)
    return found


def _again(program: Program, mask: Tensor, cuts: Tensor, training: bool) -> Masked:
    found = Masked(program)
    found.mask.copy_(mask)
    found.cuts.copy_(cuts)
    set_mode(found, training)
    return found


def _axis(group: Group, program: Program) -> tuple[str, int]:
    """A tensor's axis that holds a group, and as little else as possible."""
    members = {(m.tensor, m.axis): program.tensors[m.tensor].shape[m.axis] - m.multiplicity * group.size for m in group.members}
    return min(members, key=members.__getitem__)


def _why(group: Group) -> str:
    return str(group.statistics or "more than products with weights combines its channels")
