"""The groups of a model as a tree of its modules, in which siblings that are alike take one branch."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from typing import Final, NamedTuple

from rich.table import Table
from rich.text import Text

from graphprune.channels.couplings import layers
from graphprune.channels.groups import Group
from graphprune.cli import tables
from graphprune.cli.survey import Survey, listed_groups

_WIDEST: Final = 36  # labels take this much of a line before they are folded


class Row(NamedTuple):
    """What the tree says of one group. note: the other layers that it ties, or why it stays."""

    units: str
    share: str
    note: str
    frozen: bool


@dataclass
class Branch:
    """A module, with the groups that are named after it. name: relative to the branch above."""

    name: str
    rows: list[Row] = field(default_factory=list)
    below: dict[str, Branch] = field(default_factory=dict)

    def at(self, path: Sequence[str]) -> Branch:
        """The branch of a path, which grows where it is new."""
        here = self
        for part in path:
            here = here.below.setdefault(part, Branch(part))
        return here

    @property
    def content(self) -> object:
        """What makes branches alike: all but the name."""
        return tuple(self.rows), tuple((name, branch.content) for name, branch in self.below.items())


def group_tree(survey: Survey, groups: Sequence[Group]) -> Table:
    """The groups under the modules that they are named after, but for extents of kernels and groups of no tensor."""
    root = Branch("")
    for group in listed_groups(groups):
        name = group.name.partition("#")[0]
        root.at(name.split(".")).rows.append(_row(survey, group, name))
    table = tables.plain_table("group", "#units", "#of all\nparams", "tied with, or why it stays")
    table.columns[0].no_wrap = True  # labels are folded here, behind their guides
    for label, row in _lines(root, ""):
        table.add_row(Text(_folded(label)), *_cells(row))
    return table


def _folded(label: str) -> str:
    """A label in lines of at most :data:`_WIDEST`, where its guides leave room."""
    guides = re.match("[│├└ ]*", label)
    assert guides is not None
    begin, name = guides[0], label[guides.end() :]
    width = max(12, _WIDEST - len(begin))
    inner = begin.replace("├", "│").replace("└", " ")
    return "\n".join((begin if at == 0 else inner) + name[at : at + width] for at in range(0, max(1, len(name)), width))


def _cells(row: Row | None) -> tuple[str, str, Text]:
    if row is None:
        return "", "", Text("")
    return row.units, row.share, Text(row.note, style="dim" if row.frozen else "", overflow="fold")


def _row(survey: Survey, group: Group, name: str) -> Row:
    units = f"{group.size}" if group.channels_per_unit == 1 else f"{group.size} x {group.channels_per_unit}"
    if group.reason is not None:
        return Row(units, "stays", group.reason.text, True)
    others = [_from(name, layer) for layer in layers(member.tensor for member in group.members) if layer != name]
    return Row(units, f"{survey.parameter_shares[group.index]:.1%}", tables.listed(others, shown=2), False)


def _from(name: str, other: str) -> str:
    """Another layer as seen from one: by its name in the module of that one, or after ``…`` in the module around both."""
    mine, path = name.split("."), other.split(".")
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine[:-1], path[:-1], strict=False)))
    return f"{'…' if 0 < shared < len(mine) - 1 else ''}{'.'.join(path[shared:])}"


def _lines(branch: Branch, indent: str) -> Iterator[tuple[str, Row | None]]:
    """Labels with guides, depth first, each with what it says; chains of single branches are one."""
    runs = [list(run) for _, run in groupby(map(_chained, branch.below.values()), key=_alike)]
    for index, run in enumerate(runs):
        last = index == len(runs) - 1
        first = run[0]
        rows: list[Row | None] = [*first.rows] or [None]
        yield f"{indent}{'└' if last else '├'} {_label(run)}", rows[0]
        inner = f"{indent}{' ' if last else '│'} "
        for row in rows[1:]:
            yield f"{inner}{'│' if first.below else ' '}", row
        yield from _lines(first, inner)


def _alike(branch: Branch) -> object:
    """Branches of one content whose names differ in the last number go together."""
    return re.sub(r"\d+(?!.*\d)", "#", branch.name), branch.content


def _chained(branch: Branch) -> Branch:
    if not branch.rows and len(branch.below) == 1:
        (only,) = branch.below.values()
        below = _chained(only)
        return Branch(f"{branch.name}.{below.name}", below.rows, below.below)
    return branch


def _label(run: Sequence[Branch]) -> str:
    first, last = run[0].name, run[-1].name
    number = re.search(r"\d+$", last)
    return first if len(run) == 1 else f"{first} to {number[0] if number else last}, alike"
