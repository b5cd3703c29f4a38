"""The channel analysis: labels through the whole graph, then units and groups."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import ClassVar, Final, Literal

import numpy as np

from graphprune.channels.group_names import with_modules
from graphprune.channels.groups import FROZEN, Groups
from graphprune.channels.labels import Field, Reason, axes_of
from graphprune.channels.propagate import Trace, propagate
from graphprune.errors import UsageError, did_you_mean, unknown
from graphprune.ir.program import Program
from graphprune.pipeline.analysis_manager import AnalysisView
from graphprune.pipeline.pass_base import Analysis, Pass
from graphprune.pipeline.policy import CHOICES, Policy

_AXIS: Final = re.compile(r"(.*)\[(\d+)\]")


@dataclass(frozen=True)
class ChannelGroups(Analysis[Groups]):
    """Units and groups of the program, under its ``exclude`` patterns, its ``policy`` and what is to stay ``whole``."""

    name: ClassVar[str] = "channel-groups"

    def compute(self, program: Program, analyses: AnalysisView) -> Groups:
        """Raises UsageError for an unknown policy or an exclude pattern that matches nothing."""
        return groups_of(program, program.policy, program.exclude, program.whole)


def groups_of(
    program: Program, policy: Mapping[str, str], exclude: tuple[str, ...], whole: Mapping[str, str] | None = None
) -> Groups:
    """The groups of a program.

    A default of the policy that leaves nothing to remove at a site (whole rows of a table whose rows are told apart later) is
    reversed there, if more can be removed then, or once those are reversed that it leads to. What the user chose stands.
    Constraints have no say in it: a plan is applied without them.
    """

    def formed(sites: Mapping[str, str], *, constrained: bool) -> Groups:
        trace = propagate(program, make_policy(named, sites))
        return Groups(trace, excluded(trace, exclude, whole) if constrained else ())

    named = {key: value for key, value in policy.items() if "@" not in key}
    sites = {key: value for key, value in policy.items() if "@" in key}
    groups = formed(sites, constrained=True)
    if not _idle(groups, policy, sites):
        return groups
    bound = bool(exclude or whole)
    best = free = formed(sites, constrained=False) if bound else groups
    chosen = sites
    while turned := _idle(free, policy, sites):
        sites = sites | turned
        free = formed(sites, constrained=False)
        if _removable(free) > _removable(best):
            chosen, best = sites, free
    return formed(chosen, constrained=True) if bound else best


def _idle(groups: Groups, given: Mapping[str, str], sites: Mapping[str, str]) -> dict[str, str]:
    """The other choice at sites where the default leaves nothing to remove, and was not reversed before."""
    found: dict[str, str] = {}
    for policy, node, choice, labels in groups.trace.choices:
        site = f"{policy}@{node}"
        if policy not in given and site not in sites and not any(_can_shrink(groups, field) for field in labels):
            found[site] = next(other for other in CHOICES[policy] if other != choice)
    return found


def _can_shrink(groups: Groups, field: Field) -> bool:
    """Whether a unit that a field has an atom of can go."""
    indices = np.unique(groups.group_of[groups.unit_of[field]])
    return any(groups.prunable[index].size > 1 for index in indices.tolist() if index != FROZEN)


def _removable(groups: Groups) -> int:
    """How many atoms belong to groups that have a unit to spare."""
    spare = [index for index, group in enumerate(groups.prunable) if group.size > 1]
    return int(np.count_nonzero(np.isin(groups.group_of[groups.unit_of], spare)))


def make_policy(named: Mapping[str, str], sites: Mapping[str, str]) -> Policy:
    """A policy from plain names; raises UsageError for a name that does not exist."""
    for name in named:
        if name not in CHOICES:
            raise UsageError(unknown("policy", name, CHOICES, "Policies"))
    return Policy(**named, sites=sites)


@dataclass(frozen=True)
class ChannelsPass(Pass):
    """Set the constraints of the channel analysis, and run it.

    exclude: shell-style patterns on parameter or module names (``layer1.*``); what they match stays whole. A number in brackets
        names one axis of parameters: ``layer1.*.conv2.weight[0]`` keeps what these layers make, and not what they read.
    policy: choices at sites where a tensor can stay rectangular in several ways, ``[conv_groups=whole]``; one site only
        with ``[conv_groups@layer3.*=whole]``.
    """

    name: ClassVar[str] = "channels"
    requires: ClassVar[tuple[type[Analysis[Groups]], ...]] = (ChannelGroups,)
    preserves: ClassVar[Literal["all"]] = "all"
    streams: ClassVar[bool] = True

    exclude: tuple[str, ...] = ()
    policy: Mapping[str, str] = field(default_factory=dict)

    def run(self, program: Program, analyses: AnalysisView) -> Program:
        """The program under these constraints (the groups themselves are computed when they are first read)."""
        return program.with_(exclude=tuple(self.exclude), policy=dict(self.policy))


def excluded(trace: Trace, patterns: tuple[str, ...], whole: Mapping[str, str] | None = None) -> list[tuple[Field, Reason]]:
    """The labels of parameters whose name, or the name of a module around them, matches a pattern, with the reason.

    whole: further patterns, with reasons of their own.
    """
    found: list[tuple[Field, Reason]] = []
    for pattern, why in ({pattern: f"excluded by {pattern!r}" for pattern in patterns} | dict(whole or {})).items():
        part = _AXIS.fullmatch(pattern)
        name_pattern, axis = (part[1], int(part[2])) if part else (pattern, None)
        names = [name for name in trace.parameters if matches(name, name_pattern)]
        if not names:
            near = did_you_mean(name_pattern, with_modules(trace.parameters), ".")
            raise UsageError(f"exclude={pattern!r} matches no parameter of the model{near} `graphprune inspect` shows the names.")
        found += [
            (field, Reason(why, "exclude", name))
            for name in names
            for field in trace.parameters[name].fields
            if axis is None or axis in axes_of(field)
        ]
    return found


def matches(name: str, pattern: str) -> bool:
    """Whether a dotted name or any of its prefixes matches a shell-style pattern."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(1, len(parts) + 1))
