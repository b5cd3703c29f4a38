"""What ``inspect`` finds out about a model, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from graphprune.channels.groups import Group, Groups
from graphprune.cli.loading import Job
from graphprune.costs.cost import CostModel, Costs
from graphprune.errors import UsageError
from graphprune.ir.program import Program
from graphprune.passes.analysis.channels import ChannelGroups
from graphprune.passes.analysis.cost import ModelCost
from graphprune.pipeline.analysis_manager import AnalysisManager
from graphprune.tracing import capture

#: A kernel's height and width are frozen in every convolution; that is no news, so it is told in one line.
KERNEL_EXTENT = "the extent of a convolution kernel"


@dataclass(frozen=True)
class Survey:
    """A captured and analysed model.

    outside: parameters of the model that belong to nothing that was captured.
    parameter_shares: for every prunable group, the share of the parameters that belong to its units; a weight between
        two groups counts for both. prunable_parameters, prunable_macs: shares that go when one unit of each group is left.
    """

    job: Job
    program: Program
    groups: Groups
    cost: CostModel
    costs: Costs
    parameter_shares: Sequence[float]
    prunable_parameters: float
    prunable_macs: float
    outside: int

    @property
    def missing(self) -> Mapping[str, list[str]]:
        """Operators without a rule, with the graph nodes that call them."""
        return self.groups.trace.missing

    @property
    def every(self) -> list[Group]:
        """All groups: prunable ones first."""
        return list(self.groups)

    def matching(self, pattern: str | None) -> list[Group]:
        """Groups whose name, or a member's tensor or module, matches a shell-style pattern; all of them for None.

        Raises UsageError when there is none.
        """
        found = [g for g in self.every if pattern is None or any(fnmatchcase(name, pattern) for name in names_of(g))]
        if pattern is not None and not found:
            raise UsageError(f"--pattern {pattern!r} matches no group. Names are those of layers and tensors, as in 'layer1.*'.")
        return found

    def explained(self, name: str) -> list[Group]:
        """Groups that a layer, block or tensor belongs to. Raises UsageError, with near names, when there is none."""
        found = self.groups[name]
        return [g for g in found if g.reason is None or g.reason.text != KERNEL_EXTENT] or list(found)


def listed_groups(groups: Iterable[Group]) -> list[Group]:
    """The groups that are worth a line: all but extents of convolution kernels and those of no tensor."""
    return [group for group in groups if group.members and (group.reason is None or group.reason.text != KERNEL_EXTENT)]


def names_of(group: Group) -> set[str]:
    """The group's name, its tensors and the modules that hold them."""
    tensors = {member.tensor for member in group.members}
    return {group.name, *tensors, *(tensor.rpartition(".")[0] for tensor in tensors)} - {""}


def survey(job: Job, exclude: tuple[str, ...], policy: Mapping[str, str]) -> Survey:
    """Capture and analyse. Raises CaptureError, or UsageError for constraints that do not fit."""
    captured = capture(job.source.model, job.inputs, scopes=job.scopes, source=job.source.text)
    program = captured.with_(exclude=exclude, policy=dict(policy))
    manager = AnalysisManager()
    groups = manager.get(program, ChannelGroups())
    cost = manager.get(program, ModelCost())
    full = groups.widths
    without = full * (1 - np.eye(full.size, dtype=np.int64))  # row i: group i gone
    total, macs = float(cost.parameters(full)), float(cost.macs(full))
    known = {id(tensor) for tensor in program.tensors.values()}
    return Survey(
        job,
        program,
        groups,
        cost,
        cost.costs(full),
        [_gone(float(cost.parameters(row)), total) for row in without],
        _gone(float(cost.parameters(np.minimum(full, 1))), total),
        _gone(float(cost.macs(np.minimum(full, 1))), macs),
        sum(parameter.numel() for parameter in job.source.model.parameters() if id(parameter) not in known),
    )


def _gone(left: float, total: float) -> float:
    return 1 - left / total if total else 0.0
