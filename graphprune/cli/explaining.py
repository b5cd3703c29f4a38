"""``inspect --why NAME``: one group in sentences. What ties its slices, what keeps it, and what would change that."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from graphprune.channels.couplings import Coupling, Kind, couplings, layers
from graphprune.channels.groups import Group
from graphprune.channels.labels import Reason
from graphprune.cli import tables
from graphprune.cli.survey import Survey
from graphprune.passes.analysis.remedies import remedy

#: What a node does to channels, with those that it meets and those that they are tied to.
_DOES: Final[Mapping[Kind, str]] = {
    "reads": "{new} reads what {old} makes",
    "holds": "{new} holds a number for each channel of {old}",
    "combines": "{new} and {old} are combined channel by channel",
    "arranges": "several channels of {new} go at once, or a tensor would not stay rectangular",
}


def place(source: str) -> str:
    """A source line, from where its package starts."""
    return re.split(r"(?:site|dist)-packages/", source)[-1].removeprefix(f"{Path.cwd()}/")


def explanation(survey: Survey, groups: Sequence[Group], verbose: bool = False) -> Iterator[RenderableType]:
    """Each group: whether it can go, what ties its slices, what freezes it, and what would free it. verbose: every slice."""
    for group in groups:
        yield Text(f"\n{_heading(survey, group)}", style="bold")
        yield from _frozen(group)
        yield from _statistics(group)
        yield from _ties(survey, group)
        if verbose:
            yield _members(group)


def _heading(survey: Survey, group: Group) -> str:
    units = f"{group.size} unit{'s' if group.size > 1 else ''}"
    if group.channels_per_unit > 1:
        units += f" of {group.channels_per_unit} channels"
    if group.reason is not None:
        return f"{group.name}: {units}, must stay: {group.reason.text}"
    return f"{group.name}: {units}, can be pruned ({survey.parameter_shares[group.index]:.1%} of the parameters)"


def _frozen(group: Group) -> Iterator[RenderableType]:
    if group.reason is not None:
        yield _indented(f"Frozen by {_where(group.reason.node, group.reason.operator, group.reason.source)}.")
        if advice := remedy(group.reason):
            yield _indented(f"To free it: {advice}")


def _statistics(group: Group) -> Iterator[RenderableType]:
    if group.statistics is not None:
        where = _where(group.statistics.node, group.statistics.operator, group.statistics.source)
        yield _indented(
            f"{group.statistics.text[:1].upper()}{group.statistics.text[1:]}, taken over the kept ones once pruned, by {where}. "
            "--policy statistics=freeze keeps such channels."
        )


def _ties(survey: Survey, group: Group) -> Iterator[RenderableType]:
    found = [one for one in _couplings(survey, group) if one.kind == "arranges" or layers(one.tensors) != layers(one.with_)]
    inside = tables.listed(layers(member.tensor for member in group.members), shown=4)
    if not found:
        yield _indented(f"It is in {inside} alone." if inside else "It belongs to no layer.")
        return
    yield _indented(f"One unit is the same channel of {inside}, which go together because:")
    listing = Table.grid(padding=(0, 1))
    for one in found:
        sentence = _DOES[one.kind].format(new=_names(one.tensors), old=_names(one.with_))
        listing.add_row("-", tables.folded(f"{sentence}: {_where(one.node, one.operator, one.source)}"))
    yield Padding(listing, (0, 0, 0, 4))
    if group.reason is None:
        yield _indented(f"To keep all of them: --exclude '{group.name}'.")


def _couplings(survey: Survey, group: Group) -> tuple[Coupling, ...]:
    return couplings(survey.groups, survey.program.module.graph, group)


def _names(tensors: Sequence[str]) -> str:
    return tables.listed(layers(tensors)) or "padding"


def _where(node: str, operator: str, source: str) -> str:
    """The graph node, with its operator and source line."""
    if operator == node or not operator:
        return f"{node} at {place(source)}" if source else node
    return f"{node} ({operator})" + (f" at {place(source)}" if source else "")


def _indented(text: str) -> Padding:
    return Padding(tables.folded(text), (0, 0, 0, 2))


def _members(group: Group) -> RenderableType:
    table = tables.plain_table("tensor", "#axis", "#indices\nper unit")
    for member in group.members:
        table.add_row(tables.folded(member.tensor), str(member.axis), str(member.multiplicity))
    return Padding(table, (0, 0, 0, 2))


def as_data(survey: Survey, groups: Sequence[Group]) -> dict[str, Any]:
    """What ties each group, and what would free it, as plain data by the group's place in the list."""
    return {
        "why": [
            {
                "group": group.name,
                "ties": [_tie_data(one) for one in _couplings(survey, group)],
                "remedy": _remedy(group.reason),
            }
            for group in groups
        ]
    }


def _tie_data(one: Coupling) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "node": one.node,
        "operator": one.operator,
        "source": one.source,
        "tensors": list(one.tensors),
        "with": list(one.with_),
    }


def _remedy(reason: Reason | None) -> str | None:
    return None if reason is None else remedy(reason) or None
