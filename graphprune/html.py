"""Results, groups, plans and programs as notebooks show them: small tables without colours of their own, so that they are
readable in light and dark. Everything that comes from a model or a user is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Final

from graphprune.text import cost_rows, count, listed, share, verification_line

if TYPE_CHECKING:
    from graphprune.channels.groups import Group, Groups
    from graphprune.ir.program import Program
    from graphprune.plans.plan import Plan
    from graphprune.result import Report

_SHOWN: Final = 12  # a table of more rows is folded
_CELL: Final = "text-align:{};padding:0 1em 0 0;vertical-align:top"


def of_result(report: Report, plan: Plan, source: str) -> str:
    """What a pruning did: costs, widths, and the proof."""
    costs = table(("", "original", "slim", "remains"), cost_rows(report.before, report.after))
    widths = [(name, old, new, share(new, old)) for name, (old, new) in report.widths.items()]
    parts = [
        costs,
        folded("Groups", ("group", "units", "kept", "remains"), widths),
        line(verification_line(report.verification) if report.verification else "Not verified."),
    ]
    if plan.pipeline:
        parts.append(line(plan.pipeline, quiet=True))
    return block(f"Pruned {source or 'model'}", parts)


def of_groups(groups: Groups) -> str:
    """Every group that can go, and what must stay, with the reason."""
    prunable = [(g.name, g.size, g.channels_per_unit, len(g.members)) for g in groups.prunable]
    frozen = [(g.name, g.size, str(g.reason)) for g in groups.frozen if g.members]
    parts = [
        folded("Prunable", ("group", "units", "channels per unit", "tensor axes"), prunable),
        folded("Frozen", ("group", "units", "why"), frozen, shown=0),
    ]
    return block(f"{len(groups.prunable)} prunable groups", parts)


def of_group(group: Group) -> str:
    """One group with its slices."""
    members = [(member.tensor, member.axis, member.multiplicity) for member in group.members]
    state = f"must stay: {group.reason}" if group.reason else "can be pruned"
    return block(f"{group.name}: {group.size} units, {state}", [folded("Slices", ("tensor", "axis", "indices per unit"), members)])


def of_plan(plan: Plan) -> str:
    """What a plan leaves of each tensor that it cuts, and how it was decided."""
    facts = {
        "pipeline": plan.pipeline,
        "target": _pairs(plan.target),
        "keep": _pairs(plan.keep),
        "achieved": _pairs(plan.achieved),
        "standard errors": _pairs(plan.errors),
        "policy": _pairs(plan.policy),
    }
    cuts = [(name, axis, len(kept)) for name, axes in plan.kept.items() for axis, kept in axes.items()]
    return block(
        f"Plan that cuts {len(plan.kept)} of {len(plan.model)} tensors",
        [table(("", ""), [pair for pair in facts.items() if pair[1]]), folded("Cuts", ("tensor", "axis", "kept"), cuts)],
    )


def of_program(program: Program) -> str:
    """What was captured, and what passes have added."""
    facts = {
        "inputs": program.inputs.describe(),
        "graph": f"{len(program.module.graph.nodes)} nodes",
        "tensors": f"{len(program.tensors)}, of {count(sum(t.numel() for t in program.tensors.values()))} elements",
        "scopes": listed(scope.path for scope in program.scopes),
        "scores": listed(program.scores),
        "plan": f"cuts {len(program.plan.kept)} tensors" if program.plan else "",
        "proof": verification_line(program.verification) if program.verification else "",
    }
    parts = [table(("", ""), [pair for pair in facts.items() if pair[1]])]
    notes = [*program.opaque.items(), *program.eval_only.items()]
    if notes:
        parts.append(folded("Not traced into, or not as the original when trained", ("module", "why"), notes))
    return block(f"Program of {program.source or 'a model'}", parts)


def block(title: str, parts: Iterable[str]) -> str:
    """Parts under a title."""
    return f"<div><strong>{escape(title)}</strong>{''.join(parts)}</div>"


def line(text: str, quiet: bool = False) -> str:
    """A line of text; quiet: fainter."""
    return f'<div style="opacity:{0.7 if quiet else 1}">{escape(text)}</div>'


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; columns of numbers stand to the right. Empty for no rows."""
    if not rows:
        return ""
    sides = ["right" if isinstance(cell, (int, float)) else "left" for cell in rows[0]]
    head = "".join(_cell("th", heading, side) for heading, side in zip(headings, sides, strict=True)) if any(headings) else ""
    lines = ["".join(_cell("td", cell, side) for cell, side in zip(row, sides, strict=True)) for row in rows]
    body = "".join(f"<tr>{cells}</tr>" for cells in lines)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def folded(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]], shown: int = _SHOWN) -> str:
    """A table that is folded away where it has more rows than ``shown``."""
    if not rows:
        return ""
    state = " open" if len(rows) <= shown else ""
    return f"<details{state}><summary>{escape(title)} ({len(rows)})</summary>{table(headings, rows)}</details>"


def _cell(tag: str, content: object, side: str) -> str:
    return f'<{tag} style="{_CELL.format(side)}">{escape(str(content))}</{tag}>'


def _pairs(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in facts.items())
