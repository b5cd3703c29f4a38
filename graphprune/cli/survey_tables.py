"""What ``inspect`` prints."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from graphprune.cli import tables
from graphprune.cli.survey import KERNEL_EXTENT, Survey
from graphprune.groups import Group
from graphprune.labels import Reason


def overview(survey: Survey, groups: Sequence[Group], verbose: bool) -> Iterator[RenderableType]:
    """The capture, the groups, and what is frozen. verbose: every frozen group in a row of its own."""
    yield _captured(survey)
    if survey.program.opaque:
        yield tables.notes_table("Not traced into, so left as they are", survey.program.opaque, "module", "reason")
    if survey.program.eval_only:
        yield tables.eval_only_table(survey.program.eval_only)
    if survey.missing:
        rules = {name: tables.listed(nodes) for name, nodes in survey.missing.items()}
        yield tables.notes_table("Operators without a rule, whose inputs are frozen", rules, "operator", "called by")
    prunable = [g for g in groups if g.reason is None]
    if prunable:
        yield _prunable_table(survey, prunable)
        yield from _statistics(prunable)
    frozen = [g for g in groups if g.reason is not None and (verbose or (g.reason.text != KERNEL_EXTENT and g.members))]
    if frozen:
        yield _frozen_table(frozen, verbose)
    extents = sum(g.reason is not None and g.reason.text == KERNEL_EXTENT for g in groups)
    if extents and not verbose:
        yield Text(f"And {extents} extents of convolution kernels, which are never pruned (-v lists them).")
    yield Text(
        f"In reach of pruning: {survey.prunable_parameters:.1%} of the parameters and {survey.prunable_macs:.1%} of the MACs, "
        f"in {len(survey.groups.prunable)} group{'' if len(survey.groups.prunable) == 1 else 's'}."
    )


def _captured(survey: Survey) -> Table:
    table = Table.grid(padding=(0, 2))
    graph = survey.program.module.graph
    rows = {
        "model": f"{type(survey.job.source.model).__name__ or 'model'} from {survey.program.source}",
        "input": survey.job.inputs.describe(),
        "traced": _traced(survey),
        "graph": f"{len(graph.nodes)} nodes, {survey.groups.trace.operators} operator calls",
        "parameters": _parameters(survey),
        "MACs": f"{tables.count(survey.costs.macs)} ({tables.count(survey.costs.flops)} FLOPs)",
        "weights": tables.size(survey.costs.weight_bytes),
        "activations": f"{tables.size(survey.costs.activation_bytes)} at the peak",
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="bold"), Text(value))
    return table


def _traced(survey: Survey) -> str:
    scopes, opaque = survey.program.scopes, len(survey.program.opaque)
    how = "as a whole"
    if scopes:
        how = f"{'' if survey.job.scopes else 'not as a whole; '}in scopes: {', '.join(scope.path for scope in scopes)}"
    return f"{how}, but for {opaque} module{'s' if opaque > 1 else ''} (below)" if opaque else how


def _parameters(survey: Survey) -> str:
    if not survey.outside:
        return tables.count(survey.costs.parameters)
    where = "outside the scopes" if survey.program.scopes else "not used by the forward"
    return f"{tables.count(survey.costs.parameters)}, and {tables.count(survey.outside)} {where}"


def _prunable_table(survey: Survey, groups: Sequence[Group]) -> Table:
    headings = ("group", "#units", "#channels\nper unit", "#members", "#share of\nparameters")
    table = tables.plain_table(*headings, title="Prunable groups")
    for group in groups:
        share = f"{survey.parameter_shares[group.index]:.1%}"
        table.add_row(tables.folded(group.name), str(group.size), str(group.channels_per_unit), str(len(group.members)), share)
    return table


def _statistics(groups: Sequence[Group]) -> Iterator[Text]:
    """What is computed over channels that can go, a line for each kind."""
    together: dict[str, list[str]] = defaultdict(list)
    for group in groups:
        if group.statistics is not None:
            together[group.statistics.text].append(group.name)
    for text, names in together.items():
        yield Text(f"{text[:1].upper()}{text[1:]}, taken over the kept ones once pruned, in: {tables.listed(names)}.")


def _frozen_table(groups: Sequence[Group], verbose: bool) -> Table:
    """One row for each reason, with the first group and place that it holds for; verbose: one for each group."""
    together: dict[tuple[str, int], list[tuple[Group, Reason]]] = defaultdict(list)
    for index, group in enumerate(groups):
        if group.reason is not None:
            together[group.reason.text, index if verbose else 0].append((group, group.reason))
    table = tables.plain_table("group", "#units", "reason", "where", title="Frozen groups")
    for (text, _), members in together.items():
        name = tables.listed(dict.fromkeys(group.name for group, _ in members), shown=1)
        units = sum(group.size for group, _ in members)
        table.add_row(tables.folded(name), str(units), text, tables.folded(_place(members[0][1])))
    return table


def _place(reason: Reason) -> str:
    """The graph node and the source line, the latter from where its package starts."""
    source = re.split(r"(?:site|dist)-packages/", reason.source)[-1].removeprefix(f"{Path.cwd()}/")
    return "\n".join(part for part in (reason.node, source) if part)


def explanation(groups: Sequence[Group]) -> Iterator[RenderableType]:
    """Each group: whether it can go, what ties its slices, and what freezes it."""
    for group in groups:
        state = "can be pruned" if group.reason is None else f"must stay: {group.reason.text}"
        yield Text(f"\n{group.name}: {group.size} units, {state}", style="bold")
        for label, reason in (("frozen by", group.reason), ("statistics", group.statistics)):
            if reason is not None:
                yield Text(f"  {label}: {reason.text}")
                yield from (Text(f"    {name}: {value}") for name, value in _details(reason) if value)
        yield Text("  one unit is the same channel of:" if len(group.members) > 1 else "  one unit is one channel of:")
        table = tables.plain_table("tensor", "#axis", "#indices\nper unit")
        for member in group.members:
            table.add_row(tables.folded(member.tensor), str(member.axis), str(member.multiplicity))
        yield table


def _details(reason: Reason) -> tuple[tuple[str, str], ...]:
    return ("operator", reason.operator), ("graph node", reason.node), ("source", reason.source)


def as_data(survey: Survey, groups: Sequence[Group]) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "source": survey.program.source,
        "inputs": survey.job.inputs.describe(),
        "scopes": [scope.path for scope in survey.program.scopes],
        "graph_nodes": len(survey.program.module.graph.nodes),
        "operator_calls": survey.groups.trace.operators,
        "opaque": survey.program.opaque,
        "eval_only": survey.program.eval_only,
        "without_rule": survey.missing,
        "cost": tables.cost_data(survey.costs),
        "parameters_outside": survey.outside,
        "prunable": {"parameters": survey.prunable_parameters, "macs": survey.prunable_macs},
        "groups": [_group_data(survey, group) for group in groups if group.reason is None],
        "frozen": [_group_data(survey, group) for group in groups if group.reason is not None],
    }


def _group_data(survey: Survey, group: Group) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": group.name,
        "units": group.size,
        "channels_per_unit": group.channels_per_unit,
        "members": [{"tensor": m.tensor, "axis": m.axis, "indices_per_unit": m.multiplicity} for m in group.members],
        "statistics": _reason_data(group.statistics),
        "reason": _reason_data(group.reason),
    }
    return facts if group.reason is not None else facts | {"parameter_share": survey.parameter_shares[group.index]}


def _reason_data(reason: Reason | None) -> dict[str, str] | None:
    if reason is None:
        return None
    return {"text": reason.text, "operator": reason.operator, "node": reason.node, "source": reason.source}
