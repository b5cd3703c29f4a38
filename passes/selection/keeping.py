"""Widths that a user gives: the groups that a pattern names, and how many of their units stay."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from typing import Final

import numpy as np

from graphprune.channels.filters import Filter
from graphprune.channels.group_names import with_modules
from graphprune.channels.groups import FROZEN, Group, Groups
from graphprune.channels.levers import Levers
from graphprune.errors import NamesNothing, UsageError, did_you_mean
from graphprune.passes.analysis.channels import matches

_NUMBER: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(%)?")


def kept_units(
    keep: Mapping[str, float | str], groups: Groups, filters: Sequence[Filter], levers: Levers | None = None
) -> dict[int, int]:
    """How many units stay of the groups that are named, by index.

    keep: by a pattern on a group, or on a layer or parameter that makes its channels, or a module around them, the share of the
        group that stays (``50%``, ``0.5``) or the number of channels (``128``). Of two that name one group, the later counts.
    levers: groups that are cut alike: what is said of one goes for all on its lever, at the first step that holds it.

    Raises NamesNothing for a pattern that names nothing to prune, and UsageError for an amount that is none or more than there is.
    """
    names, said = _names(groups, filters), dict[int, str]()
    for pattern in keep:
        named = [index for index, those in names.items() if any(matches(name, pattern) for name in those)]
        if not named:
            raise NamesNothing(_names_nothing(pattern, groups), pattern)
        said = {index: one for index, one in said.items() if index not in named} | dict.fromkeys(named, pattern)
    units = {index: _units(groups.prunable[index], pattern, str(keep[pattern]).strip()) for index, pattern in said.items()}
    return units if levers is None else _on_levers(units, said, groups, levers)


@dataclass(frozen=True)
class Given:
    """A group of the original whose width is given. pattern: that names it in models of all stages. units: that stay in the end."""

    group: Group
    pattern: str
    units: int

    def channels(self, share: float, now: int) -> int:
        """How many stay once this share of the way is done. now: the units that there are.

        Rounded down: costs are convex along the way, so that a target in reach at the end, with these widths, is so before.
        """
        size = self.group.size
        return min(now, int(size - share * (size - self.units) + 1e-9)) * self.group.channels_per_unit


def given_widths(keep: Mapping[str, float | str], groups: Groups, filters: Sequence[Filter]) -> tuple[Given, ...]:
    """What ``keep`` says of each group, for those who cut in several steps. Raises as :func:`kept_units`."""
    patterns = _own_patterns(groups, filters)
    found = [Given(groups.prunable[index], patterns[index], units) for index, units in kept_units(keep, groups, filters).items()]
    return tuple(sorted(found, key=lambda one: one.pattern))  # of two that name one group the later counts: the longer pattern


def _own_patterns(groups: Groups, filters: Sequence[Filter]) -> dict[int, str]:
    """For each group a pattern that names it, and no other one where there is such a pattern."""
    names = _names(groups, filters)
    shared = Counter(prefix for those in names.values() for prefix in with_modules(those))
    return {g.index: escape(min([g.name, *sorted(names[g.index])], key=lambda name: shared[name])) for g in groups.prunable}


def _names(groups: Groups, filters: Sequence[Filter]) -> dict[int, set[str]]:
    """By what each group may be called: its name, and the parameters that make its channels."""
    names = {group.index: {group.name} for group in groups.prunable}
    for one in filters:
        for index in np.unique(groups.group_of[one.units]).tolist() if one.makes else ():
            if index != FROZEN:
                names[index].add(one.tensor)
    return names


def _on_levers(units: Mapping[int, int], said: Mapping[int, str], groups: Groups, levers: Levers) -> dict[int, int]:
    """The units of all groups on the levers that are named. Groups on none stay whole, as if no pattern named them.

    said: the pattern by which each group is named, the last one last, which counts.
    """
    full, found = groups.widths, dict[int, int]()
    for lever in levers.each:
        named = [index for index in said if index in lever.groups]
        if named:
            last = [index for index in named if said[index] == said[named[-1]]]
            step = max(-(-units[index] * lever.steps // int(full[index])) for index in last)
            found |= zip(lever.groups, lever.widths(step, full).tolist(), strict=True)
    moving = {said[index] for index in said if index in found}
    for index, pattern in said.items():
        if pattern not in moving:
            raise UsageError(
                f"keep={pattern!r} names {groups.prunable[index].name}, which no number of the config makes narrower. Leave it "
                "out, or take any widths (--widths any), with which no config makes the slim model."
            )
    return found


def _names_nothing(pattern: str, groups: Groups) -> str:
    frozen = next((g for g in groups.frozen if any(matches(member.tensor, pattern) for member in g.members)), None)
    if frozen is not None:
        return f"keep={pattern!r} names nothing that can be pruned: {frozen.reason}. Leave it out."
    reader = next((g for g in groups.prunable if any(matches(member.tensor, pattern) for member in g.members)), None)
    if reader is not None:
        return f"keep={pattern!r} names no layer that makes channels. Name one that makes those it has, such as {reader.name}."
    near = did_you_mean(pattern, with_modules(groups.trace.parameters), ".")
    return f"keep={pattern!r} matches no layer that makes channels{near} `graphprune inspect` shows the groups."


def _units(group: Group, pattern: str, text: str) -> int:
    """The units of a group that stay, one at least: a share to the nearest, channels to the next unit. ``1`` is one, ``1.`` all."""
    match, channels = _NUMBER.fullmatch(text), group.size * group.channels_per_unit
    number, percent = (float(match[1]), bool(match[2])) if match else (0.0, False)
    if not percent and number.is_integer() and (number > 1 or text == "1"):
        if number <= channels:
            return -(-int(number) // group.channels_per_unit)
    elif 0 < number <= (100 if percent else 1):
        return max(1, int(number / (100 if percent else 1) * group.size + 0.5))
    raise UsageError(f"keep={pattern!r} says {text} of the {channels} channels of {group.name}; write 50%, 0.5 or {channels}.")
